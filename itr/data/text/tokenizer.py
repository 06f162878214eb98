"""Captions to token ids: BERT's WordPiece, and the byte pairs of CLIP and RoBERTa."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from itr.data.text import tokenizer_backends
from itr.data.text.cleaners import CLEANERS
from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer_backends import SPECIALS, STYLE_SPECIALS
from itr.data.text.tokenizer_files import BytePairFiles, read_files
from itr.errors import CheckpointError, ConfigError
from itr.instantiate import nearest
from itr.view import TextView

CHUNK = 100_000  # captions that are tokenised at a time


def chunks(captions: Sequence[str]) -> Iterator[list[str]]:
    """``captions``, which may be millions in one block, a list of `CHUNK` at a time."""
    for first in range(0, len(captions), CHUNK):
        yield list(captions[first : first + CHUNK])


class Tokenizer:
    """BERT's basic tokenizer, then WordPiece (words over 100 characters become [UNK]).

    Special tokens written inside a caption are ordinary text; [CLS] and [SEP] are added here.
    Raises ConfigError for a vocabulary that is not BERT's kind.
    """

    tokens: list[str]  # the place in the list is the id
    pad_id: int
    unk_id: int | None  # None: there is none
    cls_id: int  # what stands first, whatever its name
    sep_id: int  # what stands last
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
            fault = f"lacks {', '.join(missing)}" if missing else "has [PAD] elsewhere than at 0"
            raise ConfigError(
                f"{source}: {fault}; expected a BERT vocabulary with [PAD] as its first entry"
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            vocabulary[token] for token in SPECIALS
        )
        self._fast = tokenizer_backends.wordpiece(vocabulary, **self.options)

    @classmethod
    def from_vocab(cls, tokens: Sequence[str], lowercase: bool = True) -> Tokenizer:
        """A tokenizer over ``tokens``; the place in the list is the id."""
        return cls(tokens, lowercase)

    @staticmethod
    def from_files(name_or_dir: str) -> Tokenizer:
        """The tokenizer of a BERT, RoBERTa or CLIP, told apart by its files.

        ``name_or_dir`` is a local directory, a name on the Hugging Face hub, or ``open_clip`` (the
        vocabulary in that package). Raises ConfigError when it cannot be found or used.
        """
        found = read_files(name_or_dir)
        if isinstance(found, BytePairFiles):
            return BytePairs(*found, source=name_or_dir)
        return Tokenizer(found.tokens, **found.options, source=name_or_dir)

    @staticmethod
    def from_captions(captions: Iterable[str], size: int) -> Tokenizer:
        """A WordPiece vocabulary of at most ``size`` entries learnt from ``captions``.

        The same captions give the same vocabulary, in whatever order they come.
        """
        return Tokenizer(tokenizer_backends.learn_wordpiece(list(captions), size))

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    def to_json(self) -> str:
        """All there is to know, for a checkpoint."""
        return json.dumps({"format": 1, "options": self.options, "tokens": self.tokens})

    @staticmethod
    def from_json(text: str) -> Tokenizer:
        """The tokenizer that `to_json` wrote; raises CheckpointError if it is damaged."""
        try:
            values = json.loads(text)
            if "merges" in values:
                return BytePairs(values["tokens"], values["merges"], values["style"])
            return Tokenizer(values["tokens"], **values["options"])
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"the tokenizer in the checkpoint is damaged: {error}") from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def tokenize(self, captions: Sequence[str], view: TextView) -> TokenTable:
        """Ids of ``captions``, each [CLS] ... [SEP]; cut only where ``view.max_length`` asks.

        Raises ConfigError for an unknown ``view.cleaner``.
        """
        clean = cleaner_of(view)
        last = [self.sep_id] if view.end else []
        around = 1 + len(last)
        if view.max_length is not None and view.max_length < around:
            raise ConfigError(
                f"max_length={view.max_length}: [CLS] and [SEP] alone are {around} ids"
            )
        room = None if view.max_length is None else view.max_length - around
        # Said here, the library does not warn when a data loader forks its workers.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        # Of millions of captions only the arrays are kept: as Python's numbers they take 16 times
        # as much.
        ids, words, lengths = array("i"), array("i"), array("q")
        for part in chunks(captions):
            cleaned = [clean(view.prompt + caption) for caption in part]
            for encoding in self._fast.encode_batch(cleaned, add_special_tokens=False):
                pieces = encoding.ids[:room]
                ids.extend((self.cls_id, *pieces, *last))
                words.extend((-1, *encoding.word_ids[:room], *([-1] * len(last))))
                lengths.append(len(pieces) + around)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return TokenTable(np.asarray(ids), np.asarray(words), offsets, pad=self.pad_id)


class BytePairs(Tokenizer):
    """Byte-level byte pairs in the ``style`` of CLIP or RoBERTa.

    Unlike BERT's, special tokens written inside a caption count as such, as in the authors' code.
    CLIP's has no padding id of its own: 0 pads, as its authors do. Raises ConfigError for a
    vocabulary without the style's special tokens.
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
                f"{source}: lacks {', '.join(missing)}; expected the vocabulary of a {style}"
            )
        ids = [vocabulary[token] for token in STYLE_SPECIALS[style]]
        if style == "clip":
            self.pad_id, self.unk_id, self.mask_id = 0, None, None
            self.cls_id, self.sep_id = ids
        else:
            self.cls_id, self.pad_id, self.sep_id, self.unk_id, self.mask_id = ids
        try:
            self._fast = tokenizer_backends.byte_pairs(vocabulary, self.merges, style)
        except Exception as error:  # the library's own; merges of what the vocabulary lacks
            raise ConfigError(
                f"{source}: its merges do not fit its vocabulary ({error})"
            ) from error

    @staticmethod
    def learn(captions: Iterable[str], size: int, style: str) -> BytePairs:
        """Byte pairs of at most ``size`` entries learnt from ``captions``, as `from_captions`."""
        tokens, merges = tokenizer_backends.learn_byte_pairs(list(captions), size, style)
        return BytePairs(tokens, merges, style)

    def to_json(self) -> str:
        """All there is to know, for a checkpoint."""
        values = {"tokens": self.tokens, "merges": self.merges, "style": self.style}
        return json.dumps({"format": 1, **values})


def cleaner_of(view: TextView) -> Any:
    """The function that ``view.cleaner`` names. Raises ConfigError for an unknown one."""
    if view.cleaner not in CLEANERS:
        raise ConfigError(
            f"text cleaner '{view.cleaner}': unknown{nearest(view.cleaner, CLEANERS)} "
            f"(known: {', '.join(CLEANERS)})"
        )
    return CLEANERS[view.cleaner]
