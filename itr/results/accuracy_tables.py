"""Tables of accuracies for a terminal, and the choice of the table that fits results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from itr.evaluation.statistics import Interval
from itr.results.terminal_tables import plain_table, results_table, runs_table, selected_on_test
from itr.tasks.columns import ACCURACIES, ACCURACY, ColumnSet, columns_of

Runs = Sequence[tuple[str, Mapping[str, Any]]]


def results_tables(
    results: Mapping[str, Any],
    title: str,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> list[Table]:
    """The tables of the flat ``results``: of recalls, of accuracies, or none."""
    tables = []
    if any(key.split("/")[-1] == "rsum" for key in results):
        tables.append(results_table(results, title, intervals))
    if accuracy_prefixes(results):
        tables.append(accuracy_table(results, title, intervals or {}))
    return tables


def accuracy_table(
    results: Mapping[str, Any], title: str, intervals: Mapping[str, Mapping[str, Interval]]
) -> Table:
    """One line per split and subset of it, in per cent."""
    prefixes = accuracy_prefixes(results)
    columns = _columns(results, prefixes)
    table = plain_table(title)
    for heading in ("split", "items"):
        table.add_column(heading)
    for _, heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("95 % from - to", justify="right", no_wrap=True)
    for prefix in prefixes:
        interval = intervals.get(prefix, {}).get(ACCURACY)
        table.add_row(
            prefix.rstrip("/"),
            str(results.get(f"{prefix}n_items", "")),
            *(_cell(results.get(f"{prefix}{metric}")) for metric, _ in columns),
            "" if interval is None else f"{interval.low:.1f} - {interval.high:.1f}",
        )
    remarks = [str(results[k]) for p in prefixes if (k := f"{p}remark") in results]
    if intervals:
        remarks.append("95 %: bootstrap over images with their items")
    if selected_on_test(results.get("select_on")):
        remarks.append("the checkpoint was selected on the TEST split: optimistic")
    table.caption = "\n".join(dict.fromkeys(remarks))
    return table


def runs_tables(runs: Runs) -> list[Table]:
    """Tables of several runs (name, flat results): of recalls, and one per task with accuracies."""
    by_task: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, results in runs:
        task = "" if not accuracy_prefixes(results) else str(_protocol(results))
        by_task.setdefault(task, []).append((name, results))
    return [
        runs_table(members) if not task else _accuracies(task, members)
        for task, members in by_task.items()
    ]


def _accuracies(task: str, runs: Runs) -> Table:
    """One line per run, with the test split if it was evaluated."""
    table = plain_table(f"task={task}: {len(runs)} runs")
    columns = _columns(runs[0][1], accuracy_prefixes(runs[0][1]))
    for heading in ("run", "split"):
        table.add_column(heading, overflow="fold")
    for _, heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, results in runs:
        prefixes = accuracy_prefixes(results)
        prefix = "test/" if "test/" in prefixes else prefixes[0]
        cells = (_cell(results.get(f"{prefix}{metric}")) for metric, _ in columns)
        table.add_row(name, prefix.rstrip("/"), *cells)
    return table


def accuracy_prefixes(results: Mapping[str, Any]) -> list[str]:
    """The prefix of every ``accuracy`` key: "val/", "test/", "test/testA/", ..."""
    return [key.removesuffix(ACCURACY) for key in results if key.split("/")[-1] == ACCURACY]


def _protocol(results: Mapping[str, Any]) -> str:
    found = [value for key, value in results.items() if key.split("/")[-1] == "protocol"]
    return str(results.get("task") or (found[0] if found else ""))


def _columns(results: Mapping[str, Any], prefixes: Sequence[str]) -> list[tuple[str, str]]:
    """The columns of the task that have a value in some line."""
    known: ColumnSet = columns_of(_protocol(results))
    if known.main != ACCURACY:
        known = ACCURACIES
    return [
        column
        for column in known.columns
        if "/" not in column[0]  # subsets have lines of their own
        and any(f"{prefix}{column[0]}" in results for prefix in prefixes)
    ]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"
