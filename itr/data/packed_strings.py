"""A memory-efficient sequence of strings: one UTF-8 block and the offset of each string."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class PackedStrings(Sequence[str]):
    """A read-only sequence of strings that are decoded on access. Slices are views."""

    def __init__(self, block: np.ndarray, offsets: np.ndarray):
        self.block, self.offsets = block, offsets  # [bytes] uint8, [n + 1] int64

    @classmethod
    def of(cls, texts: Iterable[str]) -> PackedStrings:
        """Pack ``texts``."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def joined(cls, parts: Sequence[PackedStrings]) -> PackedStrings:
        """Concatenate ``parts``."""
        lengths = [np.diff(part.offsets) for part in parts]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, int), *lengths]))])
        used = (part.block[part.offsets[0] : part.offsets[-1]] for part in parts)
        blocks = [np.zeros(0, np.uint8), *used]
        return cls(np.concatenate(blocks), offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Length of each string in bytes, int64 [n]."""
        return np.diff(self.offsets)

    def rows_with(self, byte: bytes) -> np.ndarray:
        """The indices of the strings that contain ``byte``, int64."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        found = np.flatnonzero(self.block[first:last] == ord(byte)) + first
        return np.unique(np.searchsorted(self.offsets, found, "right") - 1)

    def with_whole_characters(self) -> tuple[PackedStrings, np.ndarray]:
        """A copy with U+FFFD for half characters (lone surrogates), and the rows that had any."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        block = self.block[first:last]
        half = np.zeros(0, np.int64)
        if len(block):
            half = np.flatnonzero((block[:-2] == 0xED) & (block[1:-1] >= 0xA0))
        if not len(half):
            return self, np.zeros(0, np.int64)
        block = block.copy()
        for position, byte in enumerate("\ufffd".encode()):  # three bytes, as a half character
            block[half + position] = byte
        offsets = self.offsets - first
        rows = np.unique(np.searchsorted(offsets, half, "right") - 1)
        return PackedStrings(block, offsets), rows

    def rows_between(self, starts: bytes, ends: bytes) -> np.ndarray:
        """The indices of the strings with a first byte in ``starts``, a last in ``ends``, int64."""
        rows = np.flatnonzero(self.lengths > 0)
        first, last = self.block[self.offsets[rows]], self.block[self.offsets[rows + 1] - 1]
        chosen = np.isin(first, list(starts)) & np.isin(last, list(ends))
        return rows[chosen]

    def take(self, indices: np.ndarray) -> PackedStrings:
        """The strings at ``indices``, int64 [m], as a copy."""
        ends = np.flatnonzero(np.diff(indices) != 1)  # copies runs of neighbors at once
        firsts = indices[np.concatenate([[0], ends + 1])] if len(indices) else indices
        lasts = indices[np.concatenate([ends, [len(indices) - 1]])] if len(indices) else indices
        starts, stops = self.offsets[firsts].tolist(), self.offsets[lasts + 1].tolist()
        parts = [self.block[a:b] for a, b in zip(starts, stops, strict=True)]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[indices])]).astype(np.int64)
        return PackedStrings(np.concatenate([np.zeros(0, np.uint8), *parts]), offsets)

    def copy(self) -> PackedStrings:
        """Copy the strings; a slice would keep the whole block alive."""
        used = self.block[self.offsets[0] : self.offsets[-1]].copy()
        return PackedStrings(used, self.offsets - self.offsets[0])

    def __iter__(self) -> Iterator[str]:
        first, last = int(self.offsets[0]), int(self.offsets[-1])  # a slice shares the block
        data, offsets = self.block[first:last].tobytes(), (self.offsets - first).tolist()
        return (data[a:b].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise(offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> PackedStrings: ...
    def __getitem__(self, index: int | slice) -> str | PackedStrings:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError("slices of PackedStrings must have step 1")
            return PackedStrings(self.block, self.offsets[first : max(first, last) + 1])
        index = range(len(self))[index]  # handles negative indices and raises IndexError
        return (
            self.block[self.offsets[index] : self.offsets[index + 1]]
            .tobytes()
            .decode("utf-8", "surrogatepass")
        )
