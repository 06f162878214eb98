"""Examines the region array of an open split: finite values, constant rows and statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from itr.data.doctor.inspect import Advance, digest
from itr.data.doctor.report import REFUSED, WARNING, DatasetReport
from itr.data.layouts.region_arrays import map_again
from itr.data.records import Split
from itr.errors import first_of

CHUNK_BYTES = 32 << 20


@dataclasses.dataclass
class RegionStatistics:
    """Running statistics of a region array, over its finite rows."""

    not_finite: list[int] = dataclasses.field(default_factory=list)  # rows
    constant: list[int] = dataclasses.field(default_factory=list)  # rows
    digests: list[int] = dataclasses.field(default_factory=list)  # of each row
    total: float = 0.0
    squares: float = 0.0
    zeros: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, first: int, chunk: np.ndarray) -> None:
        """Add rows ``first`` and following, float32 [n, R, D]."""
        finite = np.isfinite(chunk).all(axis=(1, 2))
        spread = np.ptp(np.where(np.isfinite(chunk), chunk, 0), axis=(1, 2))
        self.not_finite += (first + np.flatnonzero(~finite)).tolist()
        self.constant += (first + np.flatnonzero(finite & (spread == 0))).tolist()
        self.digests += [digest(row.tobytes()) for row in chunk]
        if finite.any():
            good = chunk[finite]
            self.total += float(good.sum(dtype=np.float64))
            self.squares += float(np.einsum("ijk,ijk->", good, good, dtype=np.float64))
            self.zeros += int((good == 0).sum())
            self.low = min(self.low, float(good.min()))
            self.high = max(self.high, float(good.max()))

    def to_dict(self, array: np.ndarray) -> dict[str, Any]:
        """Statistics of ``array`` as plain JSON values."""
        count = max(1, (len(array) - len(self.not_finite)) * array[0].size)
        mean = self.total / count
        return {
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "mean": mean,
            "std": max(0.0, self.squares / count - mean**2) ** 0.5,
            "min": self.low,
            "max": self.high,
            "zeros": self.zeros / count,
            "rows_not_finite": len(self.not_finite),
            "rows_flat": len(self.constant),
            "summary": f"{array.shape[1]}x{array.shape[2]} {array.dtype.name}",
        }


def check_regions(split: Split, report: DatasetReport, advance: Advance) -> np.ndarray:
    """Check every value of the region array; the digest of each image, uint64 [N]."""
    assert split.regions is not None
    array = split.regions
    size = max(1, CHUNK_BYTES // max(1, array[0].nbytes))
    statistics = RegionStatistics()
    for first in range(0, len(array), size):
        chunk = map_again(array)[first : first + size].astype(np.float32)
        statistics.add(first, chunk)
        advance(len(chunk))
    _report_rows(split, statistics, report)
    report.splits[-1].statistics |= statistics.to_dict(array)
    rows = [record.image for record in split.records if isinstance(record.image, int)]
    return np.array(statistics.digests, np.uint64)[np.array(rows, np.int64)]


def _report_rows(split: Split, statistics: RegionStatistics, report: DatasetReport) -> None:
    for level, rows, what in (
        (REFUSED, statistics.not_finite, "hold NaN or infinity; extract these images again"),
        (WARNING, statistics.constant, "hold one value only; extraction probably failed"),
    ):
        if rows:
            total = len(statistics.digests)
            message = f"{split.source}: {len(rows)} of {total} rows {what} ({first_of(rows)})"
            report.add(level, split.layout, split.name, message)
