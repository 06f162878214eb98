"""A tokenizer that is kept whole: the ``tokenizer.json`` of the `tokenizers` library.

It covers what `Tokenizer` and `BytePairTokenizer` do not rebuild: Unigram, BPE with byte fallback,
any normalizer and any template of special tokens.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer import Tokenizer, chunks, get_cleaner
from itr.errors import ConfigError
from itr.view import TextView

MAX_BYTES = 512 << 20  # of a tokenizer.json, unpacked; that of 900,000 ids has 60 MB


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """What the library says of the ids beside its ``tokenizer.json``."""

    pad: int
    unk: int | None = None
    mask: int | None = None
    sep: int | None = None  # what `TextView.strip_sep` replaces by 0


class WholeTokenizer(Tokenizer):
    """The pipeline ``json_text``, with the special tokens that its post-processor adds.

    Raises ConfigError for a text that is no ``tokenizer.json``.
    """

    def __init__(self, json_text: str, special: SpecialIds, source: str = "tokenizer.json"):
        try:
            self._fast = FastTokenizer.from_str(json_text)
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(
                f"{source}: the library cannot read its tokenizer.json ({error}); copy or download "
                "it again"
            ) from error
        self._fast.no_padding()
        self._fast.no_truncation()
        self.special = special
        self.pad_id, self.unk_id, self.mask_id = special.pad, special.unk, special.mask

    def pipeline(self) -> str:
        """The text of a ``tokenizer.json``."""
        return self._fast.to_str()

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id."""
        return max(self._fast.get_vocab(with_added_tokens=True).values()) + 1

    def to_json(self) -> str:
        """The complete tokenizer as JSON, for a checkpoint; a large vocabulary is compressed."""
        special = dataclasses.asdict(self.special)
        return json.dumps({"format": 1, "whole": self._packed, "special": special})

    @functools.cached_property
    def _packed(self) -> str:
        """That takes seconds for 250,000 ids, and every checkpoint of a run holds it."""
        return base64.b85encode(zlib.compress(self._fast.to_str().encode(), 6)).decode()

    @staticmethod
    def unpack(values: Mapping[str, Any]) -> WholeTokenizer:
        """The tokenizer of the values of a `to_json`."""
        inflate = zlib.decompressobj()
        text = inflate.decompress(base64.b85decode(values["whole"]), MAX_BYTES)
        if inflate.unconsumed_tail:
            raise ValueError(f"its tokenizer.json has more than {MAX_BYTES:,} bytes")
        return WholeTokenizer(text.decode(), SpecialIds(**values["special"]))

    def tokenize(self, captions: Sequence[str], view: TextView) -> TokenTable:
        """Ids of ``captions`` with their special tokens, cut to ``view.max_length`` as a whole.

        Raises ConfigError for an unknown ``view.cleaner`` and a length without room for the
        special tokens.
        """
        clean = get_cleaner(view)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        ids, words, lengths, cut = array("i"), array("i"), array("q"), 0
        with self._truncating(view.max_length):
            for part in chunks(captions):
                cleaned = [clean(view.prompt + caption) for caption in part]
                for encoding in self._fast.encode_batch(cleaned, add_special_tokens=True):
                    ids.extend(encoding.ids)
                    words.extend(-1 if word is None else word for word in encoding.word_ids)
                    lengths.append(len(encoding.ids))
                    cut += bool(encoding.overflowing)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = np.asarray(ids)
        if view.strip_sep and self.special.sep is not None:
            flat = np.where(flat == self.special.sep, 0, flat).astype(np.int32)
        return TokenTable(flat, np.asarray(words), offsets, pad=self.pad_id, truncated=cut)

    @contextmanager
    def _truncating(self, max_length: int | None) -> Iterator[None]:
        """Inside this context texts are cut to ``max_length`` ids, special ones included."""
        if max_length is None:
            yield
            return
        added = self._fast.num_special_tokens_to_add(is_pair=False)
        if max_length <= added:
            raise ConfigError(
                f"max_length={max_length}: too short, the special tokens need {added} ids and a "
                "caption at least one"
            )
        self._fast.enable_truncation(max_length)
        try:
            yield
        finally:
            self._fast.no_truncation()
