"""Where logged values go: always to ``metrics.jsonl``, and to Weights & Biases where it is wanted.

The file is the source of truth. Whatever happens to Weights & Biases (not installed, no key, no
network), training goes on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from itr.errors import TrainingError
from itr.results.trackers.wandb_backend import TrackerConfig, start_wandb

log = logging.getLogger("itr")
METRICS = "metrics.jsonl"


class TrackerBackend(Protocol):
    """Something that keeps values beside the file."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep ``values`` of optimiser update ``step``."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Keep the results of the whole run."""

    def preempt(self) -> None:
        """Mark the run as preempted."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep a table; a cell may be a picture."""

    def finish(self, exit_code: int = 0) -> None:
        """Close; nothing is kept afterwards."""


class MetricsFile:
    """One JSON object a line: ``{"step": ..., "time": ..., key: value, ...}``, flushed at once.

    A value that is not finite becomes null (JSON has no NaN).
    """

    def __init__(self, path: Path, resume: bool = False):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.handle = open(path, "ab")
        if not resume:
            self.handle.truncate(0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append one line. Raises TrainingError if the disk is full."""
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        for key, value in values.items():
            line[key] = value if math.isfinite(value) else None
        try:
            self.handle.write(json.dumps(line).encode() + b"\n")
            self.handle.flush()
        except OSError as error:
            raise TrainingError(
                f"{self.path}: cannot be written ({error}); free some space, then go on with "
                "resume=auto"
            ) from error

    def offset(self) -> int:
        """Size of the file in bytes."""
        return self.handle.seek(0, os.SEEK_END)

    def rewind(self, offset: int) -> None:
        """Forget every line after ``offset``, which an earlier `offset` gave."""
        size = self.offset()
        if size < offset:
            log.warning(
                "%s has %d bytes, the checkpoint saw %d: lines written before it are missing",
                self.path,
                size,
                offset,
            )
        self.handle.truncate(min(size, offset))

    def close(self) -> None:
        """Close the file."""
        self.handle.close()


class Tracker:
    """All sinks of a run, as one. A context manager; leaving it by an exception marks the run as
    failed. A sink other than the file that raises is dropped with a warning."""

    def __init__(self, file: MetricsFile, others: Mapping[str, TrackerBackend]):
        self.file, self.others = file, dict(others)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.finish(0 if kind is None else 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep ``values`` of optimiser update ``step``."""
        self.file.log(values, step)
        self._each(lambda sink: sink.log(values, step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Keep the results of the whole run."""
        self._each(lambda sink: sink.summary(values))

    def preempt(self) -> None:
        """Mark the run as preempted; it goes on later."""
        self._each(lambda sink: sink.preempt())

    @property
    def has_backends(self) -> bool:
        """Whether anything beside the file listens: only then is a table worth making."""
        return bool(self.others)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep a table; a cell may be a picture (of PIL). The file has no place for it."""
        self._each(lambda sink: sink.table(key, columns, rows))

    def offset(self) -> int:
        """Where ``metrics.jsonl`` stands, for a checkpoint."""
        return self.file.offset()

    def rewind(self, offset: int) -> None:
        """Cut ``metrics.jsonl`` back to what a checkpoint saw."""
        self.file.rewind(offset)

    def finish(self, exit_code: int = 0) -> None:
        """Close every sink; safe to call twice."""
        self._each(lambda sink: sink.finish(exit_code))
        self.others.clear()
        self.file.close()

    def _each(self, action: Callable[[TrackerBackend], None]) -> None:
        for name, sink in list(self.others.items()):
            try:
                action(sink)
            except Exception as error:  # a tracker must never end a training run
                log.warning(
                    "%s stopped working (%s); going on with %s", name, error, self.file.path
                )
                del self.others[name]


class NullTracker(Tracker):
    """Takes everything and keeps nothing."""

    def __init__(self) -> None:
        self.others: dict[str, TrackerBackend] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def offset(self) -> int:
        """0."""
        return 0

    def rewind(self, offset: int) -> None:
        """Nothing."""

    def finish(self, exit_code: int = 0) -> None:
        """Nothing."""


def open_trackers(
    config: TrackerConfig, run_dir: Path, values: Mapping[str, Any], resume: bool = False
) -> Tracker:
    """The trackers of a run in ``run_dir`` whose resolved configuration is ``values``.

    With ``resume`` the lines in ``metrics.jsonl`` stay (then `Tracker.rewind`), else they go.
    Raises ConfigError for ``mode=online`` without a key.
    """
    run_dir = Path(run_dir)
    others: dict[str, TrackerBackend] = {}
    if config.name == "wandb" and config.mode != "disabled":
        sink = start_wandb(config, run_dir, values)
        if sink is not None:
            others["Weights & Biases"] = sink
    return Tracker(MetricsFile(run_dir / METRICS, resume), others)
