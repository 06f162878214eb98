"""Logs metrics to ``metrics.jsonl`` and, if configured, to Weights & Biases.

The file is the source of truth. Training continues whatever happens to Weights & Biases (package
not installed, no key, no network).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from itr.results.trackers.config import TrackerConfig
from itr.results.trackers.metrics_file import METRICS, MetricsFile
from itr.results.trackers.wandb_backend import start_wandb

log = logging.getLogger("itr")


class TrackerBackend(Protocol):
    """A service that receives metrics in addition to the file."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at optimizer update ``step``."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Store the results of the whole run."""

    def preempt(self) -> None:
        """Mark the run as preempted."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a cell may be a PIL image."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the run."""


class Tracker:
    """The metrics file and all backends of a run.

    As a context manager, it marks the run as failed if an exception leaves the block. A backend
    that raises is dropped with a warning.
    """

    def __init__(self, file: MetricsFile, backends: Mapping[str, TrackerBackend]):
        self.file, self.backends = file, dict(backends)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.finish(0 if kind is None else 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at optimizer update ``step``."""
        self.file.log(values, step)
        self._each(lambda backend: backend.log(values, step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Store the results of the whole run."""
        self._each(lambda backend: backend.summary(values))

    def preempt(self) -> None:
        """Mark the run as preempted; it is resumed later."""
        self._each(lambda backend: backend.preempt())

    @property
    def has_backends(self) -> bool:
        """Whether there is a backend; tables need not be computed otherwise."""
        return bool(self.backends)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table to the backends; a cell may be a PIL image. The file holds no tables."""
        self._each(lambda backend: backend.table(key, columns, rows))

    def offset(self) -> int:
        """Current size of ``metrics.jsonl``, to be stored in a checkpoint."""
        return self.file.offset()

    def rewind(self, offset: int) -> None:
        """Truncate ``metrics.jsonl`` to its size at a checkpoint."""
        self.file.rewind(offset)

    def finish(self, exit_code: int = 0) -> None:
        """Close the file and every backend; may be called twice."""
        self._each(lambda backend: backend.finish(exit_code))
        self.backends.clear()
        self.file.close()

    def _each(self, action: Callable[[TrackerBackend], None]) -> None:
        for name, backend in list(self.backends.items()):
            try:
                action(backend)
            except Exception as error:  # a backend must never end a training run
                log.warning(
                    "%s failed (%s); metrics are still written to %s", name, error, self.file.path
                )
                del self.backends[name]


class NullTracker(Tracker):
    """Does nothing; used on all process ranks but 0."""

    def __init__(self) -> None:
        self.backends: dict[str, TrackerBackend] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def offset(self) -> int:
        """Return 0."""
        return 0

    def rewind(self, offset: int) -> None:
        """Do nothing."""

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing."""


def open_tracker(
    config: TrackerConfig, run_dir: Path, values: Mapping[str, Any], resume: bool = False
) -> Tracker:
    """Open the tracker of the run in ``run_dir`` with the resolved configuration ``values``.

    With ``resume`` the lines of ``metrics.jsonl`` are kept (see `Tracker.rewind`), otherwise they
    are deleted. Raises ConfigError for ``mode=online`` without a key.
    """
    run_dir = Path(run_dir)
    backends: dict[str, TrackerBackend] = {}
    if config.name == "wandb" and config.mode != "disabled":
        backend = start_wandb(config, run_dir, values)
        if backend is not None:
            backends["Weights & Biases"] = backend
    return Tracker(MetricsFile(run_dir / METRICS, resume), backends)
