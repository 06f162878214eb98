"""Token ids of many captions in flat arrays, and their padding. B captions, L token ids."""

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
    """Token ids of C captions, concatenated; T ids in total, special ones included."""

    flat: np.ndarray  # [T] int32
    words: np.ndarray  # [T] int32: index of the word that an id is a piece of; -1: special id
    offsets: np.ndarray  # [C + 1] int64: start of each caption in `flat`
    pad: int = 0  # padding id
    truncated: int = 0  # captions that were cut to the view's `max_length`

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Number of ids of each caption, int64 [C]."""
        return np.diff(self.offsets)

    def ids(self, index: int) -> np.ndarray:
        """The ids of one caption, int32."""
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def positions(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices into ``flat`` of the ids of ``captions`` [B], concatenated, and lengths [B]."""
        lengths = self.lengths[captions]
        before = np.cumsum(lengths) - lengths
        shift = np.repeat(self.offsets[:-1][captions] - before, lengths)
        return shift + np.arange(lengths.sum()), lengths


def truncation_notes(name: str, table: TokenTable, view: TextView) -> list[str]:
    """A line if captions of ``table``, of the split ``name``, were cut to the view's length."""
    if not table.truncated:
        return []
    return [
        f"{name}: {table.truncated} of {len(table)} captions exceed the {view.max_length} token "
        "ids that the model reads, and are truncated"
    ]


@dataclass
class CaptionPadder:
    """Pads captions of ``table`` as ``view`` requires.

    Raises ConfigError if a caption is longer than ``view.pad_to``.
    """

    table: TokenTable
    view: TextView

    def __post_init__(self) -> None:
        longest = int(self.table.lengths.max(initial=0))
        if self.view.pad_to is not None and longest > self.view.pad_to:
            raise ConfigError(
                f"pad_to={self.view.pad_to}: the longest caption has {longest} ids; set max_length "
                f"to {self.view.pad_to} or less, or pad_to to {longest} or more"
            )

    def fields(self, ids: np.ndarray, lengths: np.ndarray, min_width: int = 0) -> dict[str, Any]:
        """The token fields of a `Batch` of B captions, padded to at least ``min_width`` ids.

        ``ids`` [sum of ``lengths``] are the concatenated captions, ``lengths`` [B] their lengths.
        """
        width = self.view.pad_to or max(int(lengths.max()), self.view.min_pad, min_width)
        mask = np.arange(width) < lengths[:, None]
        if self.view.pad_left:
            mask = mask[:, ::-1]
        tokens = np.full(mask.shape, self.table.pad, dtype=np.int64)
        tokens[mask] = ids
        return {
            "tokens": torch.from_numpy(tokens),
            "token_mask": torch.from_numpy(mask.copy()),
            "min_token_length": int(lengths.min()),
        }
