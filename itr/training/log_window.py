"""Running sums of logged values, kept on the device and read in one transfer."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from itr import parallel


class LogWindow:
    """Values of the micro-batches since the last log line.

    The loss and the ids of every micro-batch are kept too, so that the first batch with a loss
    that is not finite can be named.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.totals: list[Tensor] = []  # loss of each micro-batch, on the device
        self.batches: list[tuple[Tensor, Tensor]] = []  # image and caption indices, on the host
        self.pairs = 0
        self.started = time.perf_counter()
        self.waited = 0.0  # seconds in which the trainer waited for a batch

    def add(self, values: dict[str, Tensor]) -> None:
        """Add detached scalars to the running sums."""
        for key, value in values.items():
            value = value.detach().float()
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1

    def read(self) -> tuple[dict[str, float], int | None]:
        """Means of the values over all ranks, and the index of the first batch whose loss was not
        finite on some rank (None if all were finite). Synchronizes device and ranks."""
        keys = list(self.sums)
        flat = torch.stack([self.sums[key] for key in keys] + self.totals)
        parallel.all_reduce_mean([flat])
        numbers = flat.tolist()
        means = {key: numbers[i] / self.counts[key] for i, key in enumerate(keys)}
        totals = torch.tensor(numbers[len(keys) :])
        bad = (~torch.isfinite(totals)).nonzero()
        return means, int(bad[0]) if len(bad) else None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The running sums and their counts, for a checkpoint between two log lines."""
        return dict(self.sums), {"counts": self.counts, "pairs": self.pairs}

    def restore(self, sums: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Continue from `state`. Its batches were checked when the checkpoint was written."""
        self.sums, self.counts, self.pairs = sums, dict(meta["counts"]), meta["pairs"]
