"""Reads a run directory from outside: results, logged metrics, the reason for a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from itr.errors import DataError
from itr.files import parse_json
from itr.results.results_file import read_results
from itr.results.trackers.metrics_file import METRICS

TAIL = 64 * 1024  # bytes read from the end of a log


def results_of(run: Path) -> dict[str, Any] | None:
    """The results of a finished run, else None."""
    try:
        return read_results(run)
    except DataError:
        return None


def metric_values(run: Path, key: str) -> list[float]:
    """The values of ``key`` in ``metrics.jsonl``, oldest first. Incomplete lines are skipped."""
    try:
        lines = (run / METRICS).read_bytes().splitlines()
    except OSError:
        return []
    values = []
    for line in lines:
        try:
            value = parse_json(line).get(key)
        except (ValueError, AttributeError):  # cut short, or no object
            continue
        if isinstance(value, int | float):
            values.append(float(value))
    return values


def failure_reason(log: Path, code: int) -> str:
    """One line: the job's error message, the last line of its traceback, or its signal."""
    ending = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    # Each attempt begins with its command; only the last one counts.
    text = ("\n" + _tail(log)).rpartition("\n$ ")[2]
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    if code < 0 or not lines:
        return ending
    return f"{lines[-1]} ({ending})"


def _tail(path: Path) -> str:
    """The end of a text file; empty if the file cannot be read."""
    try:
        with open(path, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - TAIL))
            return handle.read().decode(errors="replace")
    except OSError:
        return ""
