"""The regions of a split as batches. B images, R regions, D their width."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from itr.data.precomp import bad_row
from itr.data.records import Split
from itr.errors import ConfigError, DataError


class Regions:
    """The regions of a split, by image number."""

    def __init__(self, split: Split):
        if split.regions is None:
            raise ConfigError(f"{split.source}: holds no regions, which the model's view asks for")
        self.array, self.guides = split.regions, split.guides
        self.rows = np.array([record.image for record in split.records], dtype=np.int64)
        self.source = split.source

    def fetch(
        self, images: np.ndarray, keep: np.ndarray | None = None, min_pad: int = 0
    ) -> dict[str, Any]:
        """The region fields of a `Batch`.

        Of ``images`` [B] only the regions in ``keep`` [B, R] are taken (None: all), moved to the
        front and zero-padded. Raises DataError, naming the row, for features that are not finite.
        """
        rows, (_, count, width) = self.rows[images], self.array.shape
        if keep is None:
            keep = np.ones((len(rows), count), dtype=bool)
        lengths = keep.sum(axis=1)
        mask = np.arange(max(int(lengths.max()), min_pad)) < lengths[:, None]
        flat = np.zeros(mask.shape, dtype=np.int64)
        flat[mask] = (rows[:, None] * count + np.arange(count))[keep]
        values = np.empty((*mask.shape, width), dtype=self.array.dtype)
        np.take(self.array.reshape(-1, width), flat, axis=0, out=values, mode="clip")
        values[~mask] = 0
        if values.dtype != np.float32:  # numpy's large arrays lie in huge pages, torch's do not
            half, values = values, np.empty(values.shape, np.float32)
            torch.from_numpy(values).copy_(torch.from_numpy(half))
        with np.errstate(all="ignore"):
            finite = np.isfinite(values.sum())
        if not finite:  # or the sum alone overflowed
            self._require_finite(rows)
        guides = None if self.guides is None else torch.from_numpy(self.guides[rows])
        return {
            "guides": guides,
            "regions": torch.from_numpy(values),
            "region_mask": torch.from_numpy(mask),
            "min_region_length": int(lengths.min()),
        }

    def _require_finite(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            values = np.asarray(self.array[row])
            if not np.isfinite(values).all():
                raise DataError(f"{self.source}: {bad_row(row, values)}")
