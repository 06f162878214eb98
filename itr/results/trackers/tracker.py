"""Logs metrics to ``metrics.jsonl`` and to the chosen trackers.

The file is the source of truth. A job continues whatever happens to a tracker (package not
installed, no key, no network, a full disk).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from itr.results.trackers.config import TrackerConfig
from itr.results.trackers.description import TRAIN
from itr.results.trackers.metrics_file import METRICS, MetricsFile
from itr.results.trackers.tensorboard_backend import start_tensorboard
from itr.results.trackers.trackio_backend import start_trackio
from itr.results.trackers.wandb_backend import resolve_mode, start_wandb

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


class Backends:
    """All backends of a job. One that raises is dropped with a warning.

    As a context manager, it marks the run as failed if an exception leaves the block.
    """

    def __init__(self, backends: Mapping[str, TrackerBackend], kept_in: str):
        self.backends, self.kept_in = dict(backends), kept_in

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.finish(0 if kind is None else 1)

    def __bool__(self) -> bool:
        """Whether there is a backend; tables need not be computed otherwise."""
        return bool(self.backends)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at optimizer update ``step``."""
        self._each(lambda backend: backend.log(values, step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Store the results of the whole run."""
        self._each(lambda backend: backend.summary(values))

    def preempt(self) -> None:
        """Mark the run as preempted; it is resumed later."""
        self._each(lambda backend: backend.preempt())

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a cell may be a PIL image."""
        self._each(lambda backend: backend.table(key, columns, rows))

    def finish(self, exit_code: int = 0) -> None:
        """Close every backend; may be called twice."""
        self._each(lambda backend: backend.finish(exit_code))
        self.backends.clear()

    def _each(self, action: Callable[[TrackerBackend], None]) -> None:
        for name, backend in list(self.backends.items()):
            try:
                action(backend)
            except Exception as error:  # a backend must never end a job
                log.warning("%s failed (%s); %s", name, error, self.kept_in)
                del self.backends[name]


class Tracker(Backends):
    """The metrics file and all backends of a training run."""

    def __init__(self, file: MetricsFile, backends: Mapping[str, TrackerBackend]):
        super().__init__(backends, f"metrics are still written to {file.path}")
        self.file = file

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at optimizer update ``step``."""
        self.file.log(values, step)
        super().log(values, step)

    def offset(self) -> int:
        """Current size of ``metrics.jsonl``, to be stored in a checkpoint."""
        return self.file.offset()

    def rewind(self, offset: int) -> None:
        """Truncate ``metrics.jsonl`` to its size at a checkpoint."""
        self.file.rewind(offset)

    def finish(self, exit_code: int = 0) -> None:
        """Close the file and every backend; may be called twice."""
        super().finish(exit_code)
        self.file.close()


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
    """Open the tracker of the training in ``run_dir`` with the resolved configuration ``values``.

    With ``resume`` the lines of ``metrics.jsonl`` are kept (see `Tracker.rewind`), otherwise they
    are deleted. Raises ConfigError for ``mode=online`` without a key.
    """
    run_dir = Path(run_dir)
    backends = open_backends(config, run_dir, values, TRAIN, resume)
    return Tracker(MetricsFile(run_dir / METRICS, resume), backends)


def open_backends(
    config: TrackerConfig,
    run_dir: Path,
    values: Mapping[str, Any],
    job: str,
    resume: bool = False,
) -> dict[str, TrackerBackend]:
    """The chosen backends that could be started, by name, for a ``job`` (train or eval) in
    ``run_dir``.

    Raises ConfigError for ``mode=online`` without a key.
    """
    started: dict[str, TrackerBackend | None] = {}
    if config.wandb is not None and config.wandb.mode != "disabled":
        started["Weights & Biases"] = start_wandb(config.wandb, run_dir, values, job)
    if config.trackio is not None:
        started["Trackio"] = start_trackio(config.trackio, run_dir, values, job, resume)
    if config.tensorboard is not None:
        started["TensorBoard"] = start_tensorboard(config.tensorboard, run_dir, values, job, resume)
    return {name: backend for name, backend in started.items() if backend is not None}


def chosen(config: TrackerConfig) -> bool:
    """Whether ``config`` asks for a tracker.

    Raises ConfigError for ``mode=online`` without an API key, before a job begins.
    """
    wandb = config.wandb
    if wandb is not None and wandb.mode == "online":
        try:
            resolve_mode(wandb.mode, importlib.import_module("wandb"))
        except ImportError:  # `start_wandb` reports it
            pass
    used = wandb is not None and wandb.mode != "disabled"
    return used or config.trackio is not None or config.tensorboard is not None
