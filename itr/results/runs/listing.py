"""Filters, sorts and prints runs."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from itr.errors import ConfigError, nearest
from itr.results.runs.run_state import (
    DAMAGED,
    FAILED_STATE,
    FINISHED,
    KILLED,
    PREEMPTED,
    RUNNING,
    RunState,
)
from itr.terminal import printable

FILTERS = ("name", "state", "model", "data", "task", "loss", "seed", "tag")
SORTS: Mapping[str, Callable[[RunState], Any]] = {
    "age": lambda run: -run.changed,
    "name": lambda run: run.name,
    "state": lambda run: (run.state, run.name),
    "val": lambda run: -(run.val if run.val is not None else float("-inf")),
    "test": lambda run: -(run.test if run.test is not None else float("-inf")),
    "updates": lambda run: -(run.updates or 0),
    "size": lambda run: -run.size,
}
STYLES = {
    RUNNING: "cyan",
    FINISHED: "green",
    PREEMPTED: "yellow",
    FAILED_STATE: "red",
    KILLED: "red",
    DAMAGED: "red",
}
HEADINGS = ("run", "state", "updates", "val", "test", "age", "size", "tags")
STATE, LEFT = 1, (0, 1, 7)  # columns
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def matching(runs: Sequence[RunState], filters: Sequence[str]) -> list[RunState]:
    """The runs that fit every filter KEY=PATTERN (``*`` and ``?`` as in file names).

    Raises ConfigError for an unknown key.
    """
    kept = list(runs)
    for given in filters:
        key, _, pattern = given.partition("=")
        if key not in FILTERS:
            raise ConfigError(
                f"{given}: no such filter{nearest(key, FILTERS)} (known: {', '.join(FILTERS)})"
            )
        kept = [run for run in kept if any(fnmatch.fnmatch(v, pattern) for v in _values(run, key))]
    return kept


def _values(run: RunState, key: str) -> Sequence[str]:
    return run.tags if key == "tag" else (str(getattr(run, key)),)


def report(runs: Sequence[RunState], now: float) -> Text:
    """A line per run, and below them why some did not finish; ``now`` in seconds since 1970.

    Not a `rich.table.Table`, which takes seconds for a thousand rows.
    """
    counts = {s: n for s in STYLES if (n := sum(run.state == s for run in runs))}
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    text = Text(f"{len(runs)} runs: {states}\n\n" if runs else "no runs\n")
    columns = len(HEADINGS) if any(run.tags for run in runs) else len(HEADINGS) - 1
    rows = [row[:columns] for row in (HEADINGS, *(_cells(run, now) for run in runs))]
    rows = rows if runs else []
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - cell_len(cell))
            style = STYLES.get(cell, "") if column == STATE else "" if number else "bold"
            aligned = cell + gap if column in LEFT else gap + cell
            text.append(aligned, style).append("  ")
        text.append("\n")
    return text.append("\n").append("\n".join(map(printable, notes(runs))))


def _cells(run: RunState, now: float) -> tuple[str, ...]:
    by_test = "†" if run.select_on == "test" and run.test is not None else ""
    return (
        printable(run.name),
        run.state,
        _progress(run),
        _score(run.val),
        _score(run.test) + by_test,
        age(now - run.changed),
        size(run.size),
        printable(" ".join(run.tags)),
    )


def notes(runs: Sequence[RunState]) -> list[str]:
    """Why runs did not finish, and what the columns mean."""
    lines = [f"{run.name}: {run.reason}" for run in runs if run.reason]
    if any(run.metric for run in runs):
        lines.append("val (the best so far), test: rSum of retrieval, accuracy of other tasks")
    if any(run.select_on == "test" for run in runs):
        lines.append("†: the checkpoint was selected on the TEST split")
    return lines


def _progress(run: RunState) -> str:
    done = "" if run.updates is None else f"{run.updates:,}"
    return f"{done} of {run.planned:,}" if run.planned and run.planned != run.updates else done


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def age(seconds: float) -> str:
    """``seconds`` in the largest unit that fits: "5 min"."""
    length, unit = next((u for u in UNITS if seconds >= u[0]), UNITS[-1])
    return f"{max(0, int(seconds // length))} {unit}"


def size(count: int) -> str:
    """``count`` bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
