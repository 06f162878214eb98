"""Builds the page of all runs: one HTML file without scripts, styles or fonts from elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from itr.errors import DataError
from itr.files import parse_json
from itr.results.collect import StoredRun, collect, find_results
from itr.results.escapes import one_line
from itr.results.page.run_cards import Card, card_of, differing, relative
from itr.results.paper_tables import paper_tables
from itr.results.published import load_published
from itr.results.runs.run_state import find_runs

TEMPLATE, SCRIPT = "page.html.j2", "page.js"
COLUMNS = ("test", "val", "updates", "model", "data", "task", "loss", "seed", "time", "GPU-h",
           "GiB", "M", "age", "size", "tags")  # fmt: skip
HELP = {
    "val": "best so far on the split of selection: rSum of retrieval, accuracy of other tasks",
    "test": "of the selected checkpoint; † it was selected on the test split",
    "GPU-h": "training time of all GPUs",
    "GiB": "peak memory of a GPU",
    "M": "million parameters",
}
WITH_INTERVALS = 30  # more result files than that: tables without bootstrap intervals


def build_page(paths: Sequence[Path], folder: Path) -> str:
    """The page of the runs in and below ``paths``, to be written into ``folder``.

    Raises DataError for a path that is no folder, and if there are no runs.
    """
    now = time.time()
    runs = sorted(find_runs(paths), key=lambda run: -run.changed)
    if not runs:
        raise DataError(
            f"{', '.join(map(str, paths))}: no runs in this folder or below; train first "
            "(python train.py)"
        )
    cards = [card_of(run, folder, now) for run in runs]
    used = [name for name in COLUMNS if any(card.facts[name] for card in cards)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("itr.results.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.loader.get_source(environment, SCRIPT)[0]  # type: ignore[union-attr]
    tables, with_intervals = _paper(paths)
    counts: dict[str, int] = {}
    for card in cards:
        counts[card.state] = counts.get(card.state, 0) + 1
    return environment.get_template(TEMPLATE).render(
        title=one_line(", ".join(map(str, paths))),
        counts=counts,
        columns=used,
        help=HELP,
        cards=cards,
        tables=tables,
        with_intervals=with_intervals,
        sweeps=_sweeps(paths, folder),
        data=_embedded(cards),
        script=script,
        written=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
    )


def _embedded(cards: Sequence[Card]) -> str:
    """What the script reads, as JSON that cannot end its element."""
    keys, values, places = differing(cards)
    data = {
        "runs": [
            {"name": card.name, "curves": card.curves, "options": place}
            for card, place in zip(cards, places, strict=True)
        ],
        "keys": keys,
        "values": values,
    }
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _paper(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], bool]:
    """Paper against ours, one table for each dataset, split and protocol."""
    try:
        found: list[StoredRun] = find_results(paths)
    except DataError:  # no run has finished
        return [], False
    few = len(found) <= WITH_INTERVALS
    made = paper_tables(collect(found, "test", 2000 if few else 0), load_published())
    return [
        {
            "title": one_line(table.title),
            "headings": (*table.columns.headings, "seeds", "training", "cost", "selected on"),
            "lines": [
                {
                    "kind": line.kind,
                    "name": one_line(line.name) + f" {line.marks}".rstrip(),
                    "cells": [
                        *line.cells,
                        line.seeds,
                        *map(one_line, (line.training, line.cost, line.selection)),
                    ],
                }
                for line in table.lines
            ],
            "notes": [one_line(note) for note in table.notes],
        }
        for table in made
    ], few


def _sweeps(paths: Iterable[Path], folder: Path) -> list[dict[str, Any]]:
    """The tables that `itr sweep` has written below ``paths``; a damaged one is named."""
    found = []
    for file in sorted({f for path in paths for f in path.glob("**/sweeps/*/table.json")}):
        try:
            content = parse_json(file.read_bytes())
            found.append(_sweep(content, file, folder))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            fault = one_line(f"{file}: cannot be read ({error})")
            found.append({"name": file.parent.name, "fault": fault})
    return found


def _sweep(content: dict[str, Any], file: Path, folder: Path) -> dict[str, Any]:
    rows: list[dict[str, Any]] = content["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {
        "name": one_line(str(content["sweep"])),
        "address": relative(file.with_name("table.md"), folder),
        "columns": [one_line(column) for column in columns],
        "rows": [[_cell(row.get(column)) for column in columns] for row in rows],
    }


def _cell(value: Any) -> str:
    if isinstance(value, dict):  # mean and deviation over seeds
        mean, deviation = value.get("mean"), value.get("deviation")
        text = f"{mean:.1f}" if isinstance(mean, int | float) else ""
        return f"{text} ± {deviation:.1f}" if isinstance(deviation, int | float) else text
    return "" if value is None else one_line(str(value))
