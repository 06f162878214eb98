"""Results as a file (flat JSON) and as tables for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from itr.errors import DataError
from itr.evaluation.statistics import Interval
from itr.files import atomic_write, explain_write_error

RESULTS = "results.json"
DIRECTIONS = ("i2t", "t2i")
# Key below a protocol, heading, decimals.
COLUMNS = (("r1", "R@1", 1), ("r5", "R@5", 1), ("r10", "R@10", 1), ("medr", "MedR", 0))


def write_results(run_dir: Path, results: Mapping[str, Any]) -> Path:
    """Write ``results`` to ``run_dir``/results.json, all or nothing; returns the path.

    Raises TrainingError if it cannot be written.
    """
    path = Path(run_dir) / RESULTS
    text = json.dumps(results, indent=2) + "\n"
    with explain_write_error(path, "the results"), atomic_write(path) as file:
        file.write(text.encode())
    return path


def read_results(run_dir: Path) -> dict[str, Any]:
    """What `write_results` wrote. Raises DataError if there is nothing or something else."""
    path = Path(run_dir) / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; the run has not finished") from error
    except ValueError as error:
        raise DataError(
            f"{path}: not JSON ({error}); delete it and evaluate again: "
            f"python eval.py checkpoint={run_dir} out={run_dir}"
        ) from error
    if not isinstance(results, dict):
        raise DataError(f"{path}: holds a {type(results).__name__}, expected key: value")
    return results


def results_table(
    results: Mapping[str, Any],
    title: str,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> Table:
    """One line for each split and protocol in flat ``results``: recalls in per cent, median rank,
    rSum. Fits into 80 columns. ``intervals`` (by what stands before the metrics' names) stand
    below their line, the low end above the high one."""
    table, intervals = _metric_table(title, ("split", "protocol")), intervals or {}
    remarks = _remarks(results)
    for prefix in _prefixes(results):
        table.add_row(*_names(results, prefix), *_numbers(results, prefix))
        if prefix in intervals:
            table.add_row("", "95 % from\nto", *_ends(intervals[prefix]))
    if intervals:
        remarks.append("95 %: bootstrap over images with their captions")
    table.caption = "\n".join(remarks)
    return table


def _ends(found: Mapping[str, Interval]) -> list[str]:
    names = [f"{way}_{key}" for way in DIRECTIONS for key, *_ in COLUMNS] + ["rsum"]
    cells = [found.get(name) for name in names]
    return ["" if cell is None else f"{cell.low:.1f}\n{cell.high:.1f}" for cell in cells]


def runs_table(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """One line for each of ``runs`` (name, flat results): its test split where there is one, under
    that split's first protocol. What all runs share stands below the table."""
    prefixes = ["test/" if "test/rsum" in results else _prefixes(results)[0] for _, results in runs]
    chosen = [(*run, prefix) for run, prefix in zip(runs, prefixes, strict=True)]
    evaluated = {" ".join(_names(results, prefix)) for _, results, prefix in chosen}
    shared = len(evaluated) == 1
    table = _metric_table(f"{len(runs)} runs", ("run",) if shared else ("run", "split", "protocol"))
    remarks: dict[str, None] = dict.fromkeys(evaluated if shared else ())
    for name, results, prefix in chosen:
        names = () if shared else _names(results, prefix)
        table.add_row(name, *names, *_numbers(results, prefix))
        remarks |= dict.fromkeys(_remarks(results, prefix))
    table.caption = "\n".join(remarks)
    return table


def plain_table(title: str) -> Table:
    """A table without columns yet, as narrow as it can be."""
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
    """What stands before ``rsum``: "val/", "test/", "test/coco_1k_5fold/", ... or nothing."""
    return [key.removesuffix("rsum") for key in results if key.split("/")[-1] == "rsum"]


def _names(results: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """Split and protocol of the metrics below ``prefix``."""
    split, _, protocol = prefix.partition("/")
    first = results.get(f"{split}/protocol" if split else "protocol", "")
    return split or str(results.get("split", "")), protocol.rstrip("/") or str(first)


def _numbers(results: Mapping[str, Any], prefix: str) -> list[str]:
    cells = []
    for direction in DIRECTIONS:
        for key, _, decimals in COLUMNS:
            value = results.get(f"{prefix}{direction}_{key}")
            # A mean over folds may have a median rank of 1.4.
            whole = decimals == 0 and value is not None and float(value).is_integer()
            cells.append("" if value is None else f"{value:.{0 if whole else 1}f}")
    return [*cells, f"{results[f'{prefix}rsum']:.1f}"]


def _remarks(results: Mapping[str, Any], below: str = "") -> list[str]:
    """Sizes and tie rule of each split whose fields begin with ``below``, and warnings."""
    remarks = []
    for key, rule in results.items():
        if key.startswith(below) and key.endswith("tie_break"):
            prefix = key.removesuffix("tie_break")
            split = prefix.rstrip("/") or results.get("split", "")
            images, captions = (results.get(f"{prefix}n_{what}") for what in ("images", "captions"))
            remarks.append(f"{split}: {images} images, {captions} captions, {rule} ties")
    if chosen_on_test(results.get("select_on")):
        several = "," in str(results["select_on"])
        which = "one of the checkpoints" if several else "the checkpoint"
        remarks.append(f"{which} was chosen on the TEST split: optimistic")
    return remarks


def chosen_on_test(select_on: Any) -> bool:
    """Whether a checkpoint, or one of an ensemble's ("val,test"), was chosen on the test split."""
    return "test" in str(select_on).split(",")
