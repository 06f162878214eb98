"""Tokenizers: BERT's WordPiece, and the byte-level BPE of CLIP and RoBERTa."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from itr.data.text import tokenizer_backends
from itr.data.text.cleaners import CLEANERS
from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer_backends import SPECIALS, STYLE_SPECIALS
from itr.data.text.tokenizer_files import BytePairFiles, read_tokenizer_files
from itr.errors import ConfigError, nearest
from itr.view import TextView

CHUNK = 100_000  # captions that are tokenized at a time


def chunks(captions: Sequence[str]) -> Iterator[list[str]]:
    """Lists of `CHUNK` consecutive captions; there may be millions in one block."""
    for first in range(0, len(captions), CHUNK):
        yield list(captions[first : first + CHUNK])


class Tokenizer:
    """BERT's basic tokenizer, then WordPiece (words over 100 characters become [UNK]).

    Special tokens written inside a caption are ordinary text; `tokenize` adds [CLS] and [SEP].
    Raises ConfigError for a vocabulary without BERT's special tokens.
    """

    tokens: list[str]  # the index of a token is its id
    pad_id: int
    unk_id: int | None
    cls_id: int  # first id of every caption
    sep_id: int  # last id of every caption
    mask_id: int | None

    def __init__(
        self,
        tokens: Sequence[str],
        lowercase: bool = True,
        strip_accents: bool | None = None,  # None: as `lowercase`
        space_chinese: bool = True,
        source: str = "vocabulary",
    ):
        self.tokens = list(tokens)
        self.options: dict[str, Any] = {
            "lowercase": lowercase,
            "strip_accents": strip_accents,
            "space_chinese": space_chinese,
        }
        vocabulary = {token: number for number, token in enumerate(self.tokens)}
        missing = [token for token in SPECIALS if token not in vocabulary]
        if missing or vocabulary["[PAD]"] != 0:
            fault = f"has no {', '.join(missing)}" if missing else "[PAD] is not its first entry"
            raise ConfigError(
                f"{source}: {fault}; expected a BERT vocabulary with [PAD] as its first entry"
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            vocabulary[token] for token in SPECIALS
        )
        self._fast = tokenizer_backends.wordpiece(vocabulary, **self.options)

    @classmethod
    def from_vocab(cls, tokens: Sequence[str], lowercase: bool = True) -> Tokenizer:
        """A tokenizer with the vocabulary ``tokens``; the index of a token is its id."""
        return cls(tokens, lowercase)

    @staticmethod
    def from_files(name_or_dir: str, download: bool = True) -> Tokenizer:
        """The tokenizer of a BERT, RoBERTa or CLIP; the kind is detected from its files.

        ``name_or_dir`` is a local directory, a name on the Hugging Face hub, or ``open_clip`` (the
        vocabulary in that package). Without ``download`` the hub is not asked; only its cache on
        this machine is read. Raises ConfigError if the files are missing or unusable.
        """
        files = read_tokenizer_files(name_or_dir, download)
        if isinstance(files, BytePairFiles):
            return BytePairTokenizer(*files, source=name_or_dir)
        return Tokenizer(files.tokens, **files.options, source=name_or_dir)

    @staticmethod
    def from_captions(captions: Iterable[str], size: int) -> Tokenizer:
        """A WordPiece tokenizer with at most ``size`` ids, learned from ``captions``.

        The result does not depend on the order of the captions.
        """
        return Tokenizer(tokenizer_backends.learn_wordpiece(list(captions), size))

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    def to_json(self) -> str:
        """The complete tokenizer as JSON, for a checkpoint."""
        return json.dumps({"format": 1, "options": self.options, "tokens": self.tokens})

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def tokenize(self, captions: Sequence[str], view: TextView) -> TokenTable:
        """Ids of ``captions``, each [CLS] ... [SEP], truncated to ``view.max_length``.

        Raises ConfigError for an unknown ``view.cleaner``.
        """
        clean = get_cleaner(view)
        last = [self.sep_id] if view.end else []
        n_special = 1 + len(last)
        if view.max_length is not None and view.max_length < n_special:
            raise ConfigError(
                f"max_length={view.max_length}: too short, [CLS] and [SEP] need {n_special} ids"
            )
        room = None if view.max_length is None else view.max_length - n_special
        # Without a value the library warns when a process forks after tokenizing.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        # Compact arrays: Python integers of millions of captions take 16 times the memory.
        ids, words, lengths, cut = array("i"), array("i"), array("q"), 0
        for part in chunks(captions):
            cleaned = [clean(view.prompt + caption) for caption in part]
            for encoding in self._fast.encode_batch(cleaned, add_special_tokens=False):
                pieces = encoding.ids[:room]
                cut += len(pieces) < len(encoding.ids)
                ids.extend((self.cls_id, *pieces, *last))
                words.extend((-1, *encoding.word_ids[:room], *([-1] * len(last))))
                lengths.append(len(pieces) + n_special)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return TokenTable(
            np.asarray(ids), np.asarray(words), offsets, pad=self.pad_id, truncated=cut
        )


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE in the ``style`` of ``clip`` or ``roberta``.

    As in the authors' code, and unlike BERT, special tokens written inside a caption are special.
    CLIP has no padding token; like its authors we pad with 0. Raises ConfigError for a vocabulary
    without the special tokens of the style.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[Sequence[str]],
        style: str,
        source: str = "vocabulary",
    ):
        self.tokens = list(tokens)
        self.merges, self.style = [(first, second) for first, second in merges], style
        vocabulary = {token: number for number, token in enumerate(self.tokens)}
        missing = [token for token in STYLE_SPECIALS[style] if token not in vocabulary]
        if missing:
            raise ConfigError(
                f"{source}: has no {', '.join(missing)}; expected a {style} vocabulary"
            )
        ids = [vocabulary[token] for token in STYLE_SPECIALS[style]]
        if style == "clip":
            self.pad_id, self.unk_id, self.mask_id = 0, None, None
            self.cls_id, self.sep_id = ids
        else:
            self.cls_id, self.pad_id, self.sep_id, self.unk_id, self.mask_id = ids
        try:
            self._fast = tokenizer_backends.byte_pairs(vocabulary, self.merges, style)
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(
                f"{source}: its merges do not fit its vocabulary ({error})"
            ) from error

    @staticmethod
    def learn(captions: Iterable[str], size: int, style: str) -> BytePairTokenizer:
        """A tokenizer with at most ``size`` ids, learned from ``captions``; see `from_captions`."""
        tokens, merges = tokenizer_backends.learn_byte_pairs(list(captions), size, style)
        return BytePairTokenizer(tokens, merges, style)

    def to_json(self) -> str:
        """The complete tokenizer as JSON, for a checkpoint."""
        values = {"tokens": self.tokens, "merges": self.merges, "style": self.style}
        return json.dumps({"format": 1, **values})


def get_cleaner(view: TextView) -> Callable[[str], str]:
    """The cleaner that ``view`` names. Raises ConfigError for an unknown one."""
    if view.cleaner not in CLEANERS:
        raise ConfigError(
            f"text cleaner '{view.cleaner}': unknown{nearest(view.cleaner, CLEANERS)} "
            f"(known: {', '.join(CLEANERS)})"
        )
    return CLEANERS[view.cleaner]
