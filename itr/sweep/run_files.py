"""What can be seen of a run from outside: its results, its metrics so far, why it failed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itr.errors import DataError
from itr.jobs import run_dir
from itr.results.terminal_tables import read_results

TAIL = 64 * 1024  # bytes of a log that are looked at


def results_of(run: Path) -> dict[str, Any] | None:
    """The results of a finished run, else None."""
    try:
        return read_results(run)
    except DataError:
        return None


def metrics_of(run: Path, key: str) -> Iterator[tuple[int, float]]:
    """``(step, value)`` of each line of ``metrics.jsonl`` that holds ``key``, a line cut short by
    the writer left out."""
    try:
        lines = (run / run_dir.METRICS).read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found.get(key), int | float):
            yield int(found["step"]), float(found[key])


def last_metric(run: Path, key: str) -> tuple[int, float] | None:
    """The last of `metrics_of`."""
    last = deque(metrics_of(run, key), maxlen=1)
    return last[0] if last else None


def tail(path: Path) -> str:
    """The end of a text file (nothing, if there is none)."""
    try:
        with open(path, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - TAIL))
            return handle.read().decode(errors="replace")
    except OSError:
        return ""


def reason_of(log: Path, code: int | None) -> str:
    """Why a job failed, in one line: its own sentence, a traceback's last line, or its signal."""
    ending = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    # Only what the last attempt wrote; each begins with its command.
    text = ("\n" + tail(log)).rpartition("\n$ ")[2]
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    if code is not None and code < 0:
        return ending
    return f"{lines[-1]} ({ending})" if lines else ending
