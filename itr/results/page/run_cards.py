"""What the page of all runs shows of each run, from its files alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from itr.errors import DataError
from itr.files import parse_json, parse_yaml
from itr.results.escapes import one_line
from itr.results.results_file import RESULTS, read_results
from itr.results.row_labels import flatten, is_bookkeeping
from itr.results.run_folder import CONFIG
from itr.results.runs.listing import age, size
from itr.results.runs.run_state import DAMAGED, RunState
from itr.results.trackers.metrics_file import METRICS

POINTS = 60  # of a curve, at most
LOSS = "train/loss"
COSTS = ("train_seconds", "gpu_hours", "peak_gpu_memory_gib", "parameters_millions")


@dataclass
class Card:
    """One run as the page has it. Texts are plain; the template escapes them."""

    name: str
    state: str
    reason: str
    facts: dict[str, str]  # column -> text
    order: dict[str, float | str]  # column -> what it is sorted by
    links: list[tuple[str, str]]  # text, relative address
    options: dict[str, Any] = field(default_factory=dict)  # flat configuration
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def card_of(run: RunState, page: Path, now: float) -> Card:
    """The card of ``run`` for a page in the folder ``page``; ``now`` in seconds since 1970."""
    results: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if run.state != DAMAGED:
        results, options = _results(run.folder), _options(run.folder)
    costs = {key: results.get(key) for key in COSTS}
    facts = {
        **{key: one_line(str(getattr(run, key))) for key in ("model", "data", "task", "loss")},
        "seed": "" if run.seed is None else str(run.seed),
        "updates": _updates(run),
        "val": _number(run.val),
        "test": _number(run.test) + ("†" if run.select_on == "test" and run.test else ""),
        "time": _hours(costs["train_seconds"]),
        "GPU-h": _number(costs["gpu_hours"], 2),
        "GiB": _number(costs["peak_gpu_memory_gib"]),
        "M": _number(costs["parameters_millions"], 2),
        "age": age(now - run.changed),
        "size": size(run.size),
        "tags": one_line(" ".join(run.tags)),
    }
    order: dict[str, float | str] = {
        **{key: text for key, text in facts.items() if key not in NUMERIC},
        "seed": -1 if run.seed is None else run.seed,
        "updates": run.updates or 0,
        "val": _or_lowest(run.val),
        "test": _or_lowest(run.test),
        "time": _or_lowest(costs["train_seconds"]),
        "GPU-h": _or_lowest(costs["gpu_hours"]),
        "GiB": _or_lowest(costs["peak_gpu_memory_gib"]),
        "M": _or_lowest(costs["parameters_millions"]),
        "age": now - run.changed,
        "size": run.size,
    }
    curves = _curves(run.folder / METRICS, f"{run.select_on or 'val'}/{run.metric or 'rsum'}")
    links = _links(run.folder, page)
    name, reason = one_line(run.name), one_line(run.reason)
    return Card(name, run.state, reason, facts, order, links, options, curves)


NUMERIC = ("seed", "updates", "val", "test", "time", "GPU-h", "GiB", "M", "age", "size")


def _updates(run: RunState) -> str:
    done = "" if run.updates is None else f"{run.updates:,}"
    return f"{done} of {run.planned:,}" if run.planned and run.planned != run.updates else done


def _number(value: Any, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ""


def _hours(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def _or_lowest(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else -1.0


def _results(folder: Path) -> dict[str, Any]:
    try:
        return read_results(folder) if (folder / RESULTS).is_file() else {}
    except DataError:
        return {}


def _options(folder: Path) -> dict[str, Any]:
    try:
        config = parse_yaml((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return flatten(config) if isinstance(config, dict) else {}


def _links(folder: Path, page: Path) -> list[tuple[str, str]]:
    """The folder and the galleries in it, relative to the page."""
    found = [("files", folder)]
    found += [(path.stem, path) for path in sorted(folder.glob("gallery-*.html"))]
    return [(one_line(text), relative(path, page)) for text, path in found]


def relative(path: Path, page: Path) -> str:
    """``path`` as an address in a page of the folder ``page``."""
    return quote(os.path.relpath(path.absolute(), page.absolute()))


def _curves(path: Path, key: str) -> dict[str, list[tuple[float, float]]]:
    """At most `POINTS` points of the metric of selection over epochs and the loss over updates."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    return {
        "selection": _points([line for line in lines if f'"{key}"'.encode() in line], "epoch", key),
        "loss": _points([line for line in lines if f'"{LOSS}"'.encode() in line], "step", LOSS),
    }


def _points(lines: Sequence[bytes], axis: str, key: str) -> list[tuple[float, float]]:
    step = max(1, -(-len(lines) // POINTS))
    points = []
    for line in [*lines[:-1:step], *lines[-1:]]:
        try:
            values = parse_json(line)
            points.append((round(float(values[axis]), 4), float(f"{float(values[key]):.5g}")))
        except (ValueError, KeyError, TypeError):  # half a line, or null for a number without end
            continue
    return points


def differing(cards: Iterable[Card]) -> tuple[list[str], list[list[Any]], list[list[int]]]:
    """The options in which runs differ: keys, the values of each, and per run one index a key.

    Index -1: the run lacks the key.
    """
    cards = list(cards)
    kept: list[str] = []
    values: list[list[Any]] = []
    places: list[list[int]] = [[] for _ in cards]
    for key in dict.fromkeys(key for card in cards for key in card.options):
        if is_bookkeeping(key) and key != "seed":
            continue
        seen: dict[str, int] = {}
        row = [_place(card.options, key, seen) for card in cards]
        if len(set(row)) > 1:
            kept.append(key)
            values.append(list(seen))
            for place, index in zip(places, row, strict=True):
                place.append(index)
    return kept, values, places


def _place(options: Mapping[str, Any], key: str, seen: dict[str, int]) -> int:
    if key not in options:
        return -1
    text = one_line(str(options[key]))
    return seen.setdefault(text[:200], len(seen))
