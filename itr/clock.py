"""Where training stands: the one source of warm-ups, ramps and schedules."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass
class Clock:
    """Counters of a run. ``epoch`` and ``batch`` count from 0; all are plain integers.

    ``forwards`` counts micro-batches ever seen by the model, ``updates`` optimiser updates. A
    schedule is a pure function of a clock, so a resumed run needs nothing but these numbers.
    """

    epoch: int = 0
    batch: int = 0  # micro-batch inside the epoch
    batches_per_epoch: int = 0
    forwards: int = 0
    updates: int = 0
    total_updates: int = 0
    total_epochs: int = 0
    accumulate: int = 1  # micro-batches an update; an epoch's last update may have fewer

    @property
    def progress(self) -> float:
        """Fraction of the planned updates done, in [0, 1]."""
        return min(1.0, self.updates / self.total_updates) if self.total_updates else 0.0

    def state_dict(self) -> dict[str, int]:
        """All counters, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, int]) -> Clock:
        """The clock that ``state_dict`` described."""
        return cls(**state)
