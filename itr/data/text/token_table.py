"""Token ids of a split's captions, and batches of them. B captions, L token ids."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from itr.errors import ConfigError
from itr.view import TextView


@dataclass(frozen=True)
class TokenTable:
    """Token ids of C captions, one after the other; the special ones included."""

    flat: np.ndarray  # [T] int32
    words: np.ndarray  # [T] int32: which basic token of its caption an id is a piece of; -1: none
    offsets: np.ndarray  # [C + 1] int64: where each caption begins
    pad: int = 0  # the id that fills a batch up

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[C] int64: number of ids of each caption."""
        return np.diff(self.offsets)

    def ids(self, index: int) -> np.ndarray:
        """The ids of one caption, int32."""
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def positions(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the ids of ``captions`` [B] stand in ``flat``, one after the other, and lengths."""
        lengths = self.lengths[captions]
        before = np.cumsum(lengths) - lengths
        shift = np.repeat(self.offsets[:-1][captions] - before, lengths)
        return shift + np.arange(lengths.sum()), lengths


@dataclass
class Texts:
    """Token ids of a split, padded as ``view`` asks; raises ConfigError where they do not fit."""

    table: TokenTable
    view: TextView

    def __post_init__(self) -> None:
        longest = int(self.table.lengths.max(initial=0))
        if self.view.pad_to is not None and longest > self.view.pad_to:
            raise ConfigError(
                f"pad_to={self.view.pad_to}: the longest caption has {longest} ids; set max_length "
                f"to {self.view.pad_to} or less, or pad_to to {longest} or more"
            )

    def pad(self, ids: np.ndarray, lengths: np.ndarray, least: int = 0) -> dict[str, Any]:
        """The token fields of a `Batch` from captions one after the other: ``ids`` [sum of
        ``lengths`` [B]], at least ``least`` wide."""
        width = self.view.pad_to or max(int(lengths.max()), self.view.min_pad, least)
        mask = np.arange(width) < lengths[:, None]
        tokens = np.full(mask.shape, self.table.pad, dtype=np.int64)
        tokens[mask] = ids
        return {
            "tokens": torch.from_numpy(tokens),
            "token_mask": torch.from_numpy(mask),
            "min_token_length": int(lengths.min()),
        }
