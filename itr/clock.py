"""The training clock: the counters from which all schedules, warm-ups and ramps are computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass
class Clock:
    """Counters of a run, all plain integers; ``epoch`` and ``batch`` count from 0.

    Every schedule is a pure function of the clock. A resumed run therefore needs only these
    numbers.
    """

    epoch: int = 0
    batch: int = 0  # micro-batch within the epoch
    batches_per_epoch: int = 0  # micro-batches
    forwards: int = 0  # micro-batches since the start of training
    updates: int = 0  # optimizer updates since the start of training
    total_updates: int = 0
    total_epochs: int = 0
    accumulate: int = 1  # micro-batches per update; the last update of an epoch may have fewer

    @property
    def progress(self) -> float:
        """Fraction of the planned updates that are done, in [0, 1]."""
        return min(1.0, self.updates / self.total_updates) if self.total_updates else 0.0

    @property
    def batches_of_update(self) -> int:
        """Micro-batches of the current update: ``accumulate``, or fewer at an epoch's end."""
        first = self.batch - self.batch % self.accumulate
        return min(self.accumulate, self.batches_per_epoch - first)

    def state_dict(self) -> dict[str, int]:
        """All counters, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, int]) -> Clock:
        """The clock of a `state_dict`."""
        return cls(**state)
