"""What a sweep found: rows over seeds, as a table for people and as files."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from itr.errors import TrainingError
from itr.results.terminal_tables import plain_table
from itr.sweep.grid import SEED, Job
from itr.sweep.spec import Sweep

RECALLS = tuple(
    (f"{way}_{key}", f"{way} R@{key[1:]}") for way in ("i2t", "t2i") for key in ("r1", "r5", "r10")
)
HEADINGS = (*RECALLS, ("rsum", "rSum"))
DONE, FAILED, RUNNING, MISSING, PRUNED = "done", "failed", "running", "missing", "pruned"


@dataclass
class Outcome:
    """What became of one job. ``reason`` says why it failed."""

    job: Job
    state: str = MISSING
    attempts: int = 0  # of this call of the runner
    seconds: float = 0.0
    reason: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    value: float | None = None  # of a search: what it was judged by


@dataclass
class Row:
    """The jobs that differ in nothing but the seed."""

    choices: dict[str, Any]
    outcomes: list[Outcome]

    @property
    def state(self) -> str:
        """``done``, or how many of its runs are in which state."""
        counts: dict[str, int] = {}
        for outcome in self.outcomes:
            counts[outcome.state] = counts.get(outcome.state, 0) + 1
        if len(counts) == 1:
            (state, _), *_ = counts.items()
            return state
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def numbers(self, key: str) -> list[float]:
        """The values of result ``key`` in the runs that have it."""
        found = (outcome.results.get(key) for outcome in self.outcomes)
        return [float(value) for value in found if isinstance(value, int | float)]

    def cell(self, key: str) -> str:
        """Mean, and with two runs or more the sample's standard deviation, of ``key``."""
        found = self.numbers(key)
        if len(found) < 2:
            return f"{found[0]:.1f}" if found else ""
        return f"{statistics.fmean(found):.1f} ± {statistics.stdev(found):.1f}"


def make_rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """One row for each combination without its seed, in the order of the jobs."""
    rows: dict[str, Row] = {}
    for outcome in outcomes:
        choices = {k: v for k, v in outcome.job.choices.items() if k != SEED}
        rows.setdefault(json.dumps(choices, default=str), Row(choices, [])).outcomes.append(outcome)
    return list(rows.values())


def headings(sweep: Sweep, searched: bool) -> list[str]:
    """The columns before the numbers."""
    keys = [key for key in sweep.varied if key != SEED]
    return [*keys, "runs", *(["value"] if searched else [])]


def cells(sweep: Sweep, row: Row, searched: bool) -> list[str]:
    """One row's cells under `headings` and the numbers (of the test split)."""
    names = [str(row.choices[key]) for key in sweep.varied if key != SEED]
    done = sum(outcome.state == DONE for outcome in row.outcomes)
    runs = row.state if done != len(row.outcomes) else str(done)
    value = row.outcomes[0].value
    judged = ["" if value is None else f"{value:.4g}"] if searched else []
    return [*names, runs, *judged, *(row.cell(f"test/{key}") for key, _ in HEADINGS)]


def table(sweep: Sweep, rows: Sequence[Row], title: str, searched: bool = False) -> Table:
    """The rows for a terminal."""
    shown = plain_table(title)
    for heading in headings(sweep, searched):
        shown.add_column(short(heading, sweep.varied), overflow="fold", vertical="bottom")
    for _, heading in HEADINGS:
        name = heading.replace(" ", "\n")
        shown.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        shown.add_row(*(cell.replace(" ± ", "\n±") for cell in cells(sweep, row, searched)))
    shown.caption = "\n".join(remarks(rows))
    return shown


def short(key: str, keys: Sequence[str]) -> str:
    """The end of ``key`` that tells it from the other ``keys``."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[-count:])
        if sum(other == name or other.endswith(f".{name}") for other in keys) < 2:
            break
    return name


def remarks(rows: Sequence[Row]) -> list[str]:
    """What a reader of the numbers must know: how they were made, and what failed why."""
    outcomes = [outcome for row in rows for outcome in row.outcomes]
    done = [outcome for outcome in outcomes if outcome.state == DONE]
    lines = []
    sizes = {
        (o.results.get("data"), o.results.get("test/n_images"), o.results.get("test/n_captions"))
        for o in done
    }
    for data, images, captions in sorted(sizes, key=str):
        lines.append(f"test split of {data}: {images} images, {captions} captions")
    if any(len(row.numbers("test/rsum")) > 1 for row in rows):
        lines.append("mean ± standard deviation (n - 1) over seeds")
    if any(outcome.results.get("select_on") == "test" for outcome in done):
        lines.append("some checkpoints were chosen on the TEST split: optimistic")
    for outcome in outcomes:
        if outcome.state == FAILED:
            lines.append(f"failed: {outcome.job.label}: {outcome.reason}")
    return lines


def markdown(sweep: Sweep, rows: Sequence[Row], searched: bool) -> str:
    """The rows as a Markdown page."""
    names = [*headings(sweep, searched), *(heading for _, heading in HEADINGS)]
    lines = [f"# {sweep.name}", ""]
    if sweep.description:
        lines += [sweep.description.strip(), ""]
    lines += [_line(names), "|" + "---|" * len(names)]
    lines += [_line(cells(sweep, row, searched)) for row in rows]
    lines += ["", *(f"* {remark}" for remark in remarks(rows))]
    return "\n".join(lines).rstrip() + "\n"


def _line(words: Iterable[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def write_report(
    folder: Path, sweep: Sweep, outcomes: Sequence[Outcome], searched: bool = False
) -> list[Row]:
    """Write table.md, table.csv (one line a run) and table.json to ``folder``; returns the rows.

    Raises TrainingError if they cannot be written.
    """
    rows = sorted_rows(outcomes, sweep.maximize) if searched else make_rows(outcomes)
    runs = [_flat(outcome) for outcome in outcomes]
    summary = [
        {
            **row.choices,
            "state": row.state,
            "n": len(row.numbers("test/rsum")),
            **{
                f"test/{key}": _moments(row.numbers(f"test/{key}"))
                for key, _ in HEADINGS
                if row.numbers(f"test/{key}")
            },
        }
        for row in rows
    ]
    whole = {"sweep": sweep.name, "file": str(sweep.path), "rows": summary, "runs": runs}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("table.md", markdown(sweep, rows, searched)),
            ("table.csv", _csv(runs)),
            ("table.json", json.dumps(whole, indent=2, default=str) + "\n"),
        ):
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / name)
    except OSError as error:
        raise TrainingError(f"{folder}: the table could not be saved ({error})") from error
    return rows


def sorted_rows(outcomes: Iterable[Outcome], maximize: bool) -> list[Row]:
    """The rows of a search: finished trials from the best to the worst, then the others."""

    def place(row: Row) -> tuple[bool, float]:
        value = row.outcomes[0].value or 0.0
        return row.state != DONE, -value if maximize else value

    return sorted(make_rows(outcomes), key=place)


def _moments(found: Sequence[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return {"mean": statistics.fmean(found), "deviation": deviation}


def _flat(outcome: Outcome) -> dict[str, Any]:
    numbers: Mapping[str, Any] = outcome.results
    return {
        **outcome.job.choices,
        "state": outcome.state,
        "reason": outcome.reason,
        "run": str(outcome.job.run),
        "hash": outcome.job.key,
        "attempts": outcome.attempts,
        "value": outcome.value,
        **{f"test/{key}": numbers.get(f"test/{key}") for key, _ in HEADINGS},
        "val/rsum": numbers.get("val/rsum"),
        "train_seconds": numbers.get("train_seconds"),
    }


def _csv(runs: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(runs[0]) if runs else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(runs)
    return text.getvalue()
