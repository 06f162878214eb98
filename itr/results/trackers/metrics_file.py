"""Writes ``metrics.jsonl``, the log of all metrics of a run."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.errors import TrainingError

log = logging.getLogger("itr")
METRICS = "metrics.jsonl"


class MetricsFile:
    """One JSON object per line, ``{"step": ..., "time": ..., key: value, ...}``, flushed at once.

    Values that are not finite are written as null, because JSON has no NaN. With ``resume`` the
    existing lines are kept.
    """

    def __init__(self, path: Path, resume: bool = False):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.handle = open(path, "ab")
        if not resume:
            self.handle.truncate(0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append one line. Raises TrainingError if it cannot be written, e.g. on a full disk.

        A file that was deleted or moved would take lines for ever, and nobody would read them.
        """
        self._require_there()
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        for key, value in values.items():
            line[key] = value if math.isfinite(value) else None
        try:
            self.handle.write(json.dumps(line).encode() + b"\n")
            self.handle.flush()
        except OSError as error:
            raise TrainingError(
                f"{self.path}: cannot be written ({error}); free some disk space, then resume with "
                "resume=auto"
            ) from error

    def _require_there(self) -> None:
        """Raise TrainingError if ``path`` is not the open file any more."""
        try:
            there = os.path.samestat(os.stat(self.path), os.fstat(self.handle.fileno()))
        except OSError:
            there = False
        if not there:
            raise TrainingError(
                f"{self.path}: was deleted, moved or replaced while the run wrote to it; nothing "
                "else is written there. Move the run directory back and resume with resume=auto, "
                "or train again"
            )

    def offset(self) -> int:
        """Size of the file in bytes."""
        return self.handle.seek(0, os.SEEK_END)

    def rewind(self, offset: int) -> None:
        """Remove every line after ``offset``, a value that `offset` returned earlier."""
        size = self.offset()
        if size < offset:
            log.warning(
                "%s has %d bytes, but %d at the time of the checkpoint: earlier lines are missing",
                self.path,
                size,
                offset,
            )
        self.handle.truncate(min(size, offset))

    def close(self) -> None:
        """Close the file."""
        self.handle.close()
