"""Reads region features of a split as batches. B images, R regions, D their width."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.batch import Batch
from itr.data.layouts.region_arrays import MappedFile, bad_row
from itr.data.records import Split
from itr.errors import ConfigError, DataError

CACHE_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
CHUNK_BYTES = 64 << 20


class Regions:
    """Reads region features of a split by image index.

    With the array ``cached`` of `cache_regions`, batches contain only row indices, and `Batch.to`
    looks the features up on the device.
    """

    def __init__(self, split: Split, cached: Tensor | None = None):
        if split.regions is None:
            raise ConfigError(f"{split.source}: has no region features, which the model requires")
        self.array, self.guides = split.regions, split.guides
        self.rows = np.array([record.image for record in split.records], dtype=np.int64)
        self.source = split.source
        self.cached = cached
        self.file = MappedFile(self.array)

    def fields(
        self, images: np.ndarray, keep: np.ndarray | None = None, min_pad: int = 0
    ) -> dict[str, Any]:
        """The region fields of a `Batch` of ``images`` [B].

        Regions selected by ``keep`` [B, R] (None: all) are moved to the front; the rest is zero
        padding. Raises DataError, naming the row, if features are not finite.
        """
        rows, (_, count, width) = self.rows[images], self.array.shape
        if keep is None:
            keep = np.ones((len(rows), count), dtype=bool)
        lengths = keep.sum(axis=1)
        mask = np.arange(max(int(lengths.max()), min_pad)) < lengths[:, None]
        flat = np.zeros(mask.shape, dtype=np.int64)
        if self.cached is not None:
            flat[mask] = (images[:, None] * count + np.arange(count))[keep]
            return self._lookup_fields(rows, flat, mask, lengths)
        flat[mask] = (rows[:, None] * count + np.arange(count))[keep]
        self.file.require_whole()
        values = np.empty((*mask.shape, width), dtype=self.array.dtype)
        np.take(self.array.reshape(-1, width), flat, axis=0, out=values, mode="clip")
        values[~mask] = 0
        if values.dtype != np.float32:  # large numpy arrays use huge pages, torch's do not
            half, values = values, np.empty(values.shape, np.float32)
            torch.from_numpy(values).copy_(torch.from_numpy(half))
        with np.errstate(all="ignore"):
            finite = np.isfinite(values.sum())
        if not finite:  # or only the sum overflowed
            self._require_finite(rows)
        return {"regions": torch.from_numpy(values), **self._other_fields(rows, mask, lengths)}

    def _other_fields(
        self, rows: np.ndarray, mask: np.ndarray, lengths: np.ndarray
    ) -> dict[str, Any]:
        return {
            "guides": None if self.guides is None else torch.from_numpy(self.guides[rows]),
            "region_mask": torch.from_numpy(mask),
            "min_region_length": int(lengths.min()),
        }

    def _lookup_fields(
        self, rows: np.ndarray, flat: np.ndarray, mask: np.ndarray, lengths: np.ndarray
    ) -> dict[str, Any]:
        cached = self.cached
        assert cached is not None

        def on_device(batch: Batch) -> Batch:
            assert batch.region_rows is not None and batch.region_mask is not None
            values = cached[batch.region_rows].float()
            values = values.masked_fill(~batch.region_mask.unsqueeze(-1), 0)
            return dataclasses.replace(batch, regions=values, region_rows=None)

        rest = self._other_fields(rows, mask, lengths)
        return {"region_rows": torch.from_numpy(flat), "finish": on_device, **rest}

    def _require_finite(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            values = np.asarray(self.array[row])
            if not np.isfinite(values).all():
                raise DataError(f"{self.source}: {bad_row(row, values)}")


def cache_regions(split: Split, device: torch.device, precision: str) -> Tensor:
    """Copy all region features of ``split`` to ``device``: [images * R, D], fp16 or fp32.

    fp16 halves the memory and rounds the features. Raises ConfigError for another ``precision`` or
    too little memory on the device, DataError for values outside the range of fp16.
    """
    regions = Regions(split)
    if precision not in CACHE_DTYPES:
        raise ConfigError(
            f"runtime.cache_on_device={precision}: expected {', '.join(CACHE_DTYPES)} or null (off)"
        )
    (_, count, width), images = regions.array.shape, split.n_images
    dtype = CACHE_DTYPES[precision]
    _require_room(device, images * count * width * dtype.itemsize)
    cached = torch.empty((images, count, width), dtype=dtype, device=device)
    step = max(1, CHUNK_BYTES // (count * width * 4))
    for first in range(0, images, step):
        rows = regions.rows[first : first + step]
        chunk = torch.from_numpy(regions.array[rows].astype(np.float32)).to(dtype)
        if not torch.isfinite(chunk).all():
            bad = int((~torch.isfinite(chunk)).flatten(1).any(1).nonzero()[0])
            raise DataError(
                f"{split.source}: row {rows[bad]} has values outside the range of {precision}; "
                "pass runtime.cache_on_device=fp32 or runtime.cache_on_device=null"
            )
        cached[first : first + step] = chunk.to(device)
    return cached.view(-1, width)


def _require_room(device: torch.device, needed: int) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > 0.8 * free:
        raise ConfigError(
            f"runtime.cache_on_device: the regions need {needed / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free on {device}, and the model needs memory as well; pass "
            "runtime.cache_on_device=null"
        )
