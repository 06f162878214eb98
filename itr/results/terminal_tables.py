"""Tables of results for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from itr.evaluation.statistics import Interval

DIRECTIONS = ("i2t", "t2i")
# Key within a direction, heading, decimals.
COLUMNS = (("r1", "R@1", 1), ("r5", "R@5", 1), ("r10", "R@10", 1), ("medr", "MedR", 0))


def results_table(
    results: Mapping[str, Any],
    title: str,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> Table:
    """One line per split and protocol of the flat ``results``: recalls in per cent, median rank and
    rSum. ``intervals``, by key prefix, are shown below their line, low end first."""
    table, intervals = _metric_table(title, ("split", "protocol")), intervals or {}
    remarks = _remarks(results)
    for prefix in _prefixes(results):
        table.add_row(*_split_and_protocol(results, prefix), *_cells(results, prefix))
        if prefix in intervals:
            table.add_row("", "95 % from\nto", *_interval_cells(intervals[prefix]))
    if intervals:
        remarks.append("95 %: bootstrap over images with their captions")
    table.caption = "\n".join(remarks)
    return table


def _interval_cells(intervals: Mapping[str, Interval]) -> list[str]:
    names = [f"{direction}_{key}" for direction in DIRECTIONS for key, *_ in COLUMNS] + ["rsum"]
    cells = [intervals.get(name) for name in names]
    return ["" if cell is None else f"{cell.low:.1f}\n{cell.high:.1f}" for cell in cells]


def runs_table(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """One line per run of ``runs`` (name, flat results) with its first protocol.

    The test split is shown if it was evaluated. What all runs share is stated below the table. If
    all runs were evaluated alike, the one with the highest rSum is marked.
    """
    prefixes = ["test/" if "test/rsum" in results else _prefixes(results)[0] for _, results in runs]
    evaluated = [
        " ".join(_split_and_protocol(results, prefix))
        for (_, results), prefix in zip(runs, prefixes, strict=True)
    ]
    shared = len(set(evaluated)) == 1
    table = _metric_table(f"{len(runs)} runs", ("run",) if shared else ("run", "split", "protocol"))
    remarks: dict[str, None] = dict.fromkeys(evaluated[:1] if shared else ())
    sums = [results[f"{prefix}rsum"] for (_, results), prefix in zip(runs, prefixes, strict=True)]
    best = max(sums) if shared and len(runs) > 1 else None
    for (name, results), prefix, rsum in zip(runs, prefixes, sums, strict=True):
        names = () if shared else _split_and_protocol(results, prefix)
        is_best = rsum == best
        row = (f"{name} *" if is_best else name, *names, *_cells(results, prefix))
        table.add_row(*row, style="bold" if is_best else None)
        remarks |= dict.fromkeys(_remarks(results, prefix))
    if best is not None:
        remarks["* highest rSum"] = None
    table.caption = "\n".join(remarks)
    return table


def plain_table(title: str) -> Table:
    """An empty table with minimal padding."""
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _metric_table(title: str, first: Sequence[str]) -> Table:
    table = plain_table(title)
    for heading in first:
        table.add_column(heading, overflow="fold", vertical="bottom")
    for direction in DIRECTIONS:
        for _, heading, _ in COLUMNS:
            table.add_column(f"{direction}\n{heading}", justify="right", no_wrap=True)
    table.add_column("\nrSum", justify="right", no_wrap=True)
    return table


def _prefixes(results: Mapping[str, Any]) -> list[str]:
    """The prefix of every ``rsum`` key: "val/", "test/", "test/coco_1k_5fold/", ... or ""."""
    return [key.removesuffix("rsum") for key in results if key.split("/")[-1] == "rsum"]


def _split_and_protocol(results: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """Split and protocol of the metrics with this ``prefix``."""
    split, _, protocol = prefix.partition("/")
    first = results.get(f"{split}/protocol" if split else "protocol", "")
    return split or str(results.get("split", "")), protocol.rstrip("/") or str(first)


def _cells(results: Mapping[str, Any], prefix: str) -> list[str]:
    cells = []
    for direction in DIRECTIONS:
        for key, _, decimals in COLUMNS:
            value = results.get(f"{prefix}{direction}_{key}")
            # The mean over folds of a median rank may be fractional, e.g. 1.4.
            whole = decimals == 0 and value is not None and float(value).is_integer()
            cells.append("" if value is None else f"{value:.{0 if whole else 1}f}")
    return [*cells, f"{results[f'{prefix}rsum']:.1f}"]


def _remarks(results: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Size and tie-breaking rule of each split whose keys start with ``prefix``, and warnings."""
    remarks = []
    for key, rule in results.items():
        if key.startswith(prefix) and key.endswith("tie_break"):
            start = key.removesuffix("tie_break")
            split = start.rstrip("/") or results.get("split", "")
            images, captions = (results.get(f"{start}n_{name}") for name in ("images", "captions"))
            remarks.append(f"{split}: {images} images, {captions} captions, {rule} ties")
    if "rerank_checkpoint" in results:
        remarks.append(
            f"first stage: {results['checkpoint']}; re-ranked by {results['rerank_checkpoint']}"
        )
    if selected_on_test(results.get("select_on")):
        several = "," in str(results["select_on"])
        subject = "one of the checkpoints" if several else "the checkpoint"
        remarks.append(f"{subject} was selected on the TEST split: optimistic")
    return remarks


def selected_on_test(select_on: Any) -> bool:
    """Whether the checkpoint, or one of an ensemble's ("val,test"), was selected on the test
    split."""
    return "test" in str(select_on).split(",")
