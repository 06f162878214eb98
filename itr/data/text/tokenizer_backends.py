"""Builds pipelines of the `tokenizers` library and learns vocabularies from captions.

A learned vocabulary does not depend on the order of the captions. The library's trainers number new
symbols in the order of a hash map and break ties by number; therefore all symbols that they can
encounter are numbered here in advance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as InOrder
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from itr.errors import ConfigError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD_END = "</w>"  # CLIP: suffix of the last piece of a word
STYLES = ("clip", "roberta")
STYLE_SPECIALS = {
    "clip": ("<start_of_text>", "<end_of_text>"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}
# CLIP: contractions, runs of letters, single digits, runs of other characters.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def wordpiece(
    vocabulary: Mapping[str, int],
    lowercase: bool = True,
    strip_accents: bool | None = None,
    space_chinese: bool = True,
) -> Any:
    """BERT's basic tokenizer, then WordPiece."""
    model = WordPiece(dict(vocabulary), unk_token="[UNK]", max_input_chars_per_word=100)
    fast = FastTokenizer(model)
    fast.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=space_chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    fast.pre_tokenizer = BertPreTokenizer()
    return fast


def byte_pairs(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], style: str) -> Any:
    """Byte-level BPE of CLIP or RoBERTa; special tokens written in a text are special."""
    options: dict[str, Any] = {"end_of_word_suffix": WORD_END} if style == "clip" else {}
    fast = FastTokenizer(BPE(dict(vocabulary), list(merges), **options))
    fast.pre_tokenizer = _byte_level(style)
    fast.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in STYLE_SPECIALS[style]]
    )
    return fast


def _byte_level(style: str) -> Any:
    if style == "roberta":
        return ByteLevel(add_prefix_space=False)
    words = Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    return InOrder([words, ByteLevel(add_prefix_space=False, use_regex=False)])


def learn_wordpiece(captions: Sequence[str], size: int) -> list[str]:
    """Tokens of a WordPiece vocabulary with at most ``size`` entries.

    Raises ConfigError if the characters of the captions already need more.
    """
    fast = wordpiece({"[UNK]": 0})
    characters = fast.normalizer.normalize_str("".join(sorted(set("".join(captions)))))
    # c can continue a word if "a" + c is a single word.
    continuations = [
        f"##{character}"
        for character in sorted(set(characters))
        if len(fast.pre_tokenizer.pre_tokenize_str(f"a{character}")) == 1
        and not character.isspace()
    ]
    trainer = WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIALS, *continuations], show_progress=False
    )
    fast.train_from_iterator(captions, trainer, length=len(captions))
    vocabulary = fast.get_vocab()
    _require_room(size, len(vocabulary), "the captions' characters")
    return sorted(vocabulary, key=vocabulary.__getitem__)


def learn_byte_pairs(
    captions: Sequence[str], size: int, style: str
) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a byte-level BPE with at most ``size`` entries, special ones included.

    Special tokens come last for CLIP and first for RoBERTa. Raises ConfigError if the bytes already
    need more.
    """
    letters = sorted(ByteLevel.alphabet())
    known = [*letters, *(letter + WORD_END for letter in letters)] if style == "clip" else letters
    specials = STYLE_SPECIALS[style]
    room = size - len(specials)
    _require_room(size, len(known) + len(specials), "bytes and special tokens")
    fast = FastTokenizer(BPE())
    fast.pre_tokenizer = _byte_level(style)
    options: dict[str, Any] = {"end_of_word_suffix": WORD_END} if style == "clip" else {}
    trainer = BpeTrainer(vocab_size=room, special_tokens=known, show_progress=False, **options)
    fast.train_from_iterator(captions, trainer, length=len(captions))
    vocabulary, merges = fast.get_vocab(), _merges(fast)
    learned = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = [*learned, *specials] if style == "clip" else [*specials, *learned]
    return tokens, merges


def _merges(fast: Any) -> list[tuple[str, str]]:
    merges = json.loads(fast.to_str())["model"]["merges"]
    return [tuple(merge) for merge in merges]


def _require_room(size: int, needed: int, what: str) -> None:
    if needed > size:
        raise ConfigError(
            f"vocabulary_size={size}: too small, {what} need {needed}; pass a larger one"
        )
