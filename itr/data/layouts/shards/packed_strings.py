"""Many short strings in little memory: one block of UTF-8 and where each begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class PackedStrings(Sequence[str]):
    """A sequence of strings that are decoded when they are asked for."""

    def __init__(self, block: np.ndarray, offsets: np.ndarray):
        self.block, self.offsets = block, offsets  # [bytes] uint8, [n + 1] int64

    @classmethod
    def of(cls, texts: Iterable[str]) -> PackedStrings:
        """``texts``, packed."""
        encoded = [text.encode("utf-8") for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def joined(cls, parts: Sequence[PackedStrings]) -> PackedStrings:
        """All of ``parts``, one after the other."""
        lengths = [np.diff(part.offsets) for part in parts]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, int), *lengths]))])
        used = (part.block[part.offsets[0] : part.offsets[-1]] for part in parts)
        blocks = [np.zeros(0, np.uint8), *used]
        return cls(np.concatenate(blocks), offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each string, int64 [n]."""
        return np.diff(self.offsets)

    def take(self, places: np.ndarray) -> PackedStrings:
        """The strings at ``places``, int64, one after the other."""
        ends = np.flatnonzero(np.diff(places) != 1)  # runs of neighbours are copied as a whole
        firsts = places[np.concatenate([[0], ends + 1])] if len(places) else places
        lasts = places[np.concatenate([ends, [len(places) - 1]])] if len(places) else places
        starts, stops = self.offsets[firsts].tolist(), self.offsets[lasts + 1].tolist()
        parts = [self.block[a:b] for a, b in zip(starts, stops, strict=True)]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[places])]).astype(np.int64)
        return PackedStrings(np.concatenate([np.zeros(0, np.uint8), *parts]), offsets)

    def copy(self) -> PackedStrings:
        """The same strings in memory of their own: a slice keeps the whole block alive."""
        used = self.block[self.offsets[0] : self.offsets[-1]].copy()
        return PackedStrings(used, self.offsets - self.offsets[0])

    def __iter__(self) -> Iterator[str]:
        first, last = int(self.offsets[0]), int(self.offsets[-1])  # a slice shares the whole block
        data, offsets = self.block[first:last].tobytes(), (self.offsets - first).tolist()
        return (data[a:b].decode("utf-8") for a, b in itertools.pairwise(offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> PackedStrings: ...
    def __getitem__(self, place: int | slice) -> str | PackedStrings:
        if isinstance(place, slice):
            first, last, step = place.indices(len(self))
            if step != 1:
                raise ValueError("strings are sliced in steps of 1")
            return PackedStrings(self.block, self.offsets[first : max(first, last) + 1])
        place = range(len(self))[place]  # raises IndexError, counts from the end
        return self.block[self.offsets[place] : self.offsets[place + 1]].tobytes().decode("utf-8")
