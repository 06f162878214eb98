"""Results of a sweep as a table: one row per combination, averaged over seeds."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from itr.files import atomic_write, explain_write_error
from itr.results import escapes
from itr.results.terminal_tables import plain_table
from itr.sweep.grid import SEED, SweepJob
from itr.sweep.spec import Sweep
from itr.tasks.columns import ACCURACY, RETRIEVAL, columns_of

RECALLS = tuple(
    (f"{way}_{key}", f"{way} R@{key[1:]}") for way in ("i2t", "t2i") for key in ("r1", "r5", "r10")
)
RETRIEVAL_HEADINGS = (*RECALLS, ("rsum", "rSum"))
Headings = tuple[tuple[str, str], ...]  # metric, heading
DONE, FAILED, RUNNING, MISSING, PRUNED = "done", "failed", "running", "missing", "pruned"


@dataclass
class JobOutcome:
    """State and results of one job. ``reason`` says why it failed."""

    job: SweepJob
    state: str = MISSING
    attempts: int = 0  # by this runner
    seconds: float = 0.0
    reason: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    value: float | None = None  # of the metric that a search optimizes


@dataclass
class SeedRow:
    """The jobs that differ only in the seed."""

    choices: dict[str, Any]
    outcomes: list[JobOutcome]

    @property
    def state(self) -> str:
        """``done``, or the number of runs in each state."""
        counts: dict[str, int] = {}
        for outcome in self.outcomes:
            counts[outcome.state] = counts.get(outcome.state, 0) + 1
        if len(counts) == 1:
            (state, _), *_ = counts.items()
            return state
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def numbers(self, key: str) -> list[float]:
        """The values of result ``key`` in the runs that have it."""
        values = (outcome.results.get(key) for outcome in self.outcomes)
        return [float(value) for value in values if isinstance(value, int | float)]

    def cell(self, key: str) -> str:
        """Mean of ``key`` and, for two or more runs, the sample standard deviation."""
        values = self.numbers(key)
        if len(values) < 2:
            return f"{values[0]:.1f}" if values else ""
        return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def metric_headings(outcomes: Iterable[JobOutcome]) -> Headings:
    """The metrics of the test split, as the tasks of the runs have them; recalls without a run."""
    tasks = dict.fromkeys(str(o.results.get("test/protocol")) for o in outcomes if o.results)
    found: dict[str, str] = {}
    for task in tasks or ("full",):
        known = columns_of(task)
        found |= dict(RETRIEVAL_HEADINGS if known.main == RETRIEVAL.main else known.columns)
    return tuple(found.items())


def all_outcomes(rows: Iterable[SeedRow]) -> list[JobOutcome]:
    """The jobs of all ``rows``."""
    return [outcome for row in rows for outcome in row.outcomes]


def make_rows(outcomes: Iterable[JobOutcome]) -> list[SeedRow]:
    """One row for each combination of values without the seed, in the order of the jobs."""
    rows: dict[str, SeedRow] = {}
    for outcome in outcomes:
        choices = {k: v for k, v in outcome.job.choices.items() if k != SEED}
        rows.setdefault(json.dumps(choices, default=str), SeedRow(choices, [])).outcomes.append(
            outcome
        )
    return list(rows.values())


def headings(sweep: Sweep, searched: bool) -> list[str]:
    """The columns before the numbers."""
    keys = [key for key in sweep.varied if key != SEED]
    return [*keys, "runs", *(["value"] if searched else [])]


def cells(sweep: Sweep, row: SeedRow, searched: bool, metrics: Headings) -> list[str]:
    """The cells of one row: `headings`, then ``metrics`` of the test split."""
    names = [str(row.choices[key]) for key in sweep.varied if key != SEED]
    done = sum(outcome.state == DONE for outcome in row.outcomes)
    runs = row.state if done != len(row.outcomes) else str(done)
    value = row.outcomes[0].value
    objective = ["" if value is None else f"{value:.4g}"] if searched else []
    return [*names, runs, *objective, *(row.cell(f"test/{key}") for key, _ in metrics)]


def table(sweep: Sweep, rows: Sequence[SeedRow], title: str, searched: bool = False) -> Table:
    """The rows as a table for the terminal."""
    grid = plain_table(title)
    for heading in headings(sweep, searched):
        grid.add_column(short(heading, sweep.varied), overflow="fold", vertical="bottom")
    metrics = metric_headings(all_outcomes(rows))
    for _, heading in metrics:
        name = heading.replace(" ", "\n")
        grid.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        grid.add_row(*(cell.replace(" ± ", "\n±") for cell in cells(sweep, row, searched, metrics)))
    grid.caption = "\n".join(remarks(rows))
    return grid


def short(key: str, keys: Sequence[str]) -> str:
    """The shortest dotted ending of ``key`` that no other of ``keys`` has."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[-count:])
        if sum(other == name or other.endswith(f".{name}") for other in keys) < 2:
            break
    return name


def remarks(rows: Sequence[SeedRow]) -> list[str]:
    """Notes below the table: the test split, the averaging, the jobs that failed and why."""
    outcomes = all_outcomes(rows)
    done = [outcome for outcome in outcomes if outcome.state == DONE]
    lines = []
    sizes = {
        (o.results.get("data"), o.results.get("test/n_images"), o.results.get("test/n_captions"))
        for o in done
    }
    for data, images, captions in sorted(sizes, key=str):
        texts = "" if captions is None else f", {captions} captions"
        lines.append(f"test split of {data}: {images} images{texts}")
    metrics = metric_headings(outcomes)
    if any(len(row.numbers(f"test/{key}")) > 1 for row in rows for key, _ in metrics):
        lines.append("mean ± standard deviation (n - 1) over seeds")
    if any(outcome.results.get("select_on") == "test" for outcome in done):
        lines.append("some checkpoints were selected on the TEST split: optimistic")
    for outcome in outcomes:
        if outcome.state == FAILED:
            lines.append(f"failed: {outcome.job.label}: {outcome.reason}")
    return lines


def markdown(sweep: Sweep, rows: Sequence[SeedRow], searched: bool) -> str:
    """The rows as a Markdown page."""
    metrics = metric_headings(all_outcomes(rows))
    names = [*headings(sweep, searched), *(heading for _, heading in metrics)]
    lines = [f"# {escapes.markdown(sweep.name)}", ""]
    if sweep.description:
        lines += [sweep.description.strip(), ""]
    lines += [_line(names), "|" + "---|" * len(names)]
    lines += [_line(cells(sweep, row, searched, metrics)) for row in rows]
    lines += ["", *(f"* {escapes.markdown(remark)}" for remark in remarks(rows))]
    return "\n".join(lines).rstrip() + "\n"


def _line(words: Iterable[str]) -> str:
    return "| " + " | ".join(map(escapes.markdown, words)) + " |"


def write_report(
    folder: Path, sweep: Sweep, outcomes: Sequence[JobOutcome], searched: bool = False
) -> list[SeedRow]:
    """Write table.md, table.csv (one line per run) and table.json to ``folder``; returns the rows.

    Raises TrainingError if a file cannot be written.
    """
    rows = sorted_rows(outcomes, sweep.maximize) if searched else make_rows(outcomes)
    metrics = metric_headings(outcomes)
    runs = [_flat(outcome, metrics) for outcome in outcomes]
    summary = [
        {
            **row.choices,
            "state": row.state,
            "n": max(len(row.numbers(f"test/{key}")) for key, _ in metrics),
            **{
                f"test/{key}": _moments(row.numbers(f"test/{key}"))
                for key, _ in metrics
                if row.numbers(f"test/{key}")
            },
        }
        for row in rows
    ]
    whole = {"sweep": sweep.name, "file": str(sweep.path), "rows": summary, "runs": runs}
    texts = {
        "table.md": markdown(sweep, rows, searched),
        "table.csv": _csv(runs),
        "table.json": json.dumps(whole, indent=2, default=str) + "\n",
    }
    for name, text in texts.items():
        path = folder / name
        with explain_write_error(path, "the table"), atomic_write(path) as file:
            file.write(text.encode())
    return rows


def sorted_rows(outcomes: Iterable[JobOutcome], maximize: bool) -> list[SeedRow]:
    """The rows of a search: finished trials from best to worst, then the others."""

    def order(row: SeedRow) -> tuple[bool, float]:
        value = row.outcomes[0].value or 0.0
        return row.state != DONE, -value if maximize else value

    return sorted(make_rows(outcomes), key=order)


def _moments(values: Sequence[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation}


def _flat(outcome: JobOutcome, metrics: Headings) -> dict[str, Any]:
    numbers: Mapping[str, Any] = outcome.results
    selecting = [key for key, _ in metrics if key in (RETRIEVAL.main, ACCURACY)]
    return {
        **outcome.job.choices,
        "state": outcome.state,
        "reason": outcome.reason,
        "run": str(outcome.job.run),
        "hash": outcome.job.key,
        "attempts": outcome.attempts,
        "value": outcome.value,
        **{f"test/{key}": numbers.get(f"test/{key}") for key, _ in metrics},
        **{f"val/{key}": numbers.get(f"val/{key}") for key in selecting},
        "train_seconds": numbers.get("train_seconds"),
    }


def _csv(runs: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(runs[0]) if runs else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: escapes.csv_cell(v) for k, v in run.items()} for run in runs)
    return text.getvalue()
