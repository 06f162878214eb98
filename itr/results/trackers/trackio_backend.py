"""Logs a run to Trackio, on this machine unless its own environment variables name a server."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from itr.results.escapes import markdown
from itr.results.trackers.config import TrackioConfig
from itr.results.trackers.description import EVAL, group_of, tags_of

log = logging.getLogger("itr")


class TrackioBackend:
    """A Trackio run; what the package prints is dropped, what it warns of is logged once.

    Trackio has no summary: results that are numbers become a last point of their curves.
    """

    def __init__(self, trackio: Any, options: Mapping[str, Any]):
        self.trackio, self.step = trackio, 0
        self.logged: set[str] = set()
        self.told: set[str] = set()
        with self._quiet():
            self.run = trackio.init(embed=False, **options)
        # Its own threads warn through this function.
        self.run._warn_once = lambda key, message, *_: self._tell(message)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at optimizer update ``step``."""
        self.step = step
        self.logged.update(values)
        with self._warned():
            self.run.log(dict(values), step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Log the numbers among ``values`` that no curve has yet."""
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        if new := {k: v for k, v in numbers.items() if k not in self.logged}:
            self.log(new, self.step)

    def preempt(self) -> None:
        """Raise an alert that the run was preempted."""
        self._alert("preempted", "it goes on from its last checkpoint with resume=auto")

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log ``rows`` as a table; a cell may be a PIL image. Trackio reads text as Markdown."""
        cells = [[self._cell(cell) for cell in row] for row in rows]
        with self._warned():
            table = self.trackio.Table(columns=list(columns), data=cells)
            self.run.log({key: table}, step=self.step)

    def _cell(self, cell: Any) -> Any:
        if isinstance(cell, Image):
            return self.trackio.Image(cell)
        return markdown(cell) if isinstance(cell, str) else cell

    def finish(self, exit_code: int = 0) -> None:
        """Close the run; Trackio has no state for a failure, which becomes an alert."""
        if exit_code:
            self._alert("failed", f"exit code {exit_code}")
        with self._quiet():
            self.trackio.finish()  # else it does so again at exit, and prints

    def _alert(self, title: str, text: str) -> None:
        with self._quiet():
            self.run.alert(title, text, level=self.trackio.AlertLevel.ERROR)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Around what prints. Not while the progress display writes to the standard output."""
        with contextlib.redirect_stdout(io.StringIO()), self._warned():
            yield

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield
        for warning in told:
            self._tell(str(warning.message))

    def _tell(self, message: str) -> None:
        if message not in self.told:
            self.told.add(message)
            log.warning("Trackio: %s", message)


def start_trackio(
    config: TrackioConfig, run_dir: Path, values: Mapping[str, Any], job: str, resume: bool = False
) -> TrackioBackend | None:
    """Start a Trackio run, or return None if it is missing or fails (with a warning)."""
    try:
        trackio = importlib.import_module("trackio")
    except ImportError:
        log.warning(
            "tracker=trackio: trackio is not installed; run pip install 'itr-suite[trackio]', or "
            "pass tracker=none. Metrics are written to metrics.jsonl"
        )
        return None
    name = run_dir.absolute().name
    try:
        backend = TrackioBackend(
            trackio,
            {
                "project": config.project,
                "name": f"{name} (eval)" if job == EVAL else name,
                "group": config.group or group_of(values),
                "config": {**values, "job": job, "tags": tags_of(values, config.tags)},
                "resume": "allow" if resume else "never",
            },
        )
    except Exception as error:  # training does not depend on it
        log.warning("Trackio: no run could be started (%s)", str(error).split("\n")[0])
        return None
    log.info("Trackio: trackio show --project %s", config.project)
    return backend
