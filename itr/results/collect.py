"""From folders of results to rows: seeds of one configuration together, each with its intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from itr.errors import DataError
from itr.evaluation.protocols import PROTOCOLS
from itr.evaluation.queries import QueryLog, query_file, read_queries
from itr.evaluation.statistics import METRICS, Interval, recall_intervals, spread
from itr.results.tables import RESULTS, read_results

SKIPPED = ("wandb", "checkpoints")  # folders of a run that hold no other run
# What, beside the configuration without its seed, two rows must share to be seeds of one row.
SAME = ("model", "data", "loss", "select_on", "official", "ensemble", "trained_on", "precision")
SPLIT_SAME = ("tie_rule", "rerank_k", "n_images", "n_captions")


@dataclass(frozen=True)
class Found:
    """One results.json (or one run of Weights & Biases) and where it is from."""

    name: str
    results: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None


@dataclass
class Row:
    """One configuration under one protocol, over its seeds."""

    name: str
    split: str
    protocol: str
    variant: str  # "", first_stage, or the name of an extra row
    runs: list[Found]
    values: dict[str, list[float]]  # metric -> one value a seed
    intervals: dict[str, Interval] = field(default_factory=dict)

    def fact(self, key: str) -> Any:
        """A field of the results (the seeds share it), of the protocol or of the whole."""
        results = self.runs[0].results
        for place in (f"{self.split}/{self.protocol}/", f"{self.split}/", ""):
            if (found := results.get(f"{place}{key}")) is not None:
                return found
        return None

    def mean(self, metric: str) -> tuple[float | None, float | None]:
        """Mean and deviation over seeds; None where there is nothing to say."""
        values = self.values.get(metric)
        return spread(values) if values else (None, None)

    @property
    def ensemble(self) -> int:
        """How many models the scores are of; an ensemble's members stand for themselves."""
        return 1 if self.variant.startswith("member_") else int(self.fact("ensemble") or 1)

    @property
    def data(self) -> str:
        """The data set that was evaluated."""
        return str(self.fact("data") or "?")

    @property
    def seeds(self) -> list[Any]:
        """The seeds, in order."""
        return [run.results.get("seed") for run in self.runs]


def find_results(paths: Iterable[Path]) -> list[Found]:
    """Every results.json at or below ``paths``, sorted by folder.

    Raises DataError for a path that is not there, for a broken file, and if nothing is found.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; name a run, or a folder of runs")
        for file in sorted(path.rglob(RESULTS)):
            if not set(SKIPPED) & set(file.relative_to(path).parts):
                folders[file.parent] = None
    if not folders:
        raise DataError(
            f"{', '.join(map(str, paths))}: no {RESULTS} below it; train first (python train.py), "
            "or evaluate with out=DIR"
        )
    return [Found(f.name, read_results(f), _config(f), f) for f in folders]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def collect(found: Sequence[Found], split: str = "test", resamples: int = 2000) -> list[Row]:
    """A row for each configuration, protocol and variant of ``split``; seeds share a row.

    Of the same seed twice (a run, and a later evaluation of it) the later file counts.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for run in found:
        for prefix, protocol, variant in _places(run.results, split):
            key = (*_key(run, split), protocol, variant)
            values = {m: run.results[k] for m in METRICS if (k := f"{prefix}{m}") in run.results}
            row = rows.setdefault(key, Row("", split, protocol, variant, [], {}))
            _add(row, run, values)
    made = list(rows.values())
    _name(made)
    for row in made:
        if resamples and not row.variant:
            row.intervals = _intervals(row, resamples)
    return made


def _places(results: Mapping[str, Any], split: str) -> list[tuple[str, str, str]]:
    """(prefix of the keys, protocol, variant) of all that was measured on ``split``."""
    first = str(results.get(f"{split}/protocol", "full"))
    places = []
    for key in results:
        parts = key.split("/")
        if parts[0] != split or parts[-1] != "rsum":
            continue
        inner = parts[1:-1]
        protocol = next((part for part in inner if part in PROTOCOLS), first)
        variant = "/".join(part for part in inner if part not in PROTOCOLS)
        places.append((key.removesuffix("rsum"), protocol, variant))
    return places


def _key(run: Found, split: str) -> tuple[Any, ...]:
    results = run.results
    own = results.get("seedless_hash") or results.get("checkpoint") or run.name
    shared = [json.dumps(results.get(key)) for key in SAME]
    return (own, *shared, *(results.get(f"{split}/{key}") for key in SPLIT_SAME))


def _add(row: Row, run: Found, values: Mapping[str, float]) -> None:
    seed, place = run.results.get("seed"), len(row.runs)
    for i, other in enumerate(row.runs):
        if seed is not None and other.results.get("seed") == seed:
            if _time(run) < _time(other):
                return
            place = i
    if place == len(row.runs):
        row.runs.append(run)
        for metric, value in values.items():
            row.values.setdefault(metric, []).append(value)
        return
    row.runs[place] = run
    for metric, value in values.items():
        row.values[metric][place] = value


def _time(run: Found) -> float:
    return (run.folder / RESULTS).stat().st_mtime if run.folder else 0.0


def _name(rows: Sequence[Row]) -> None:
    """Model, loss where it is not the model's own, and what sets alike rows apart."""
    for row in rows:
        model, loss = row.fact("model") or row.runs[0].name, row.fact("loss")
        row.name = str(model) if loss in (None, model) else f"{model}, loss {loss}"
        if row.fact("official"):
            row.name += ", authors' checkpoint"
        if row.variant:
            row.name += f", {row.variant.replace('_', ' ')}"
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.name, row.data, row.protocol), []).append(row)
    for group in (group for group in alike.values() if len(group) > 1):
        flat = [_flatten(row.runs[0].config) for row in group]
        keys = sorted({key for one in flat for key in one if key not in ("seed", "out")})
        differing = [k for k in keys if len({json.dumps(one.get(k)) for one in flat}) > 1]
        for row, one in zip(group, flat, strict=True):
            own = [f"{key}={one[key]}" for key in differing[:3] if key in one]
            row.name += f" ({', '.join(own) or row.runs[0].name})"


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _intervals(row: Row, resamples: int) -> dict[str, Interval]:
    """Intervals of the mean over seeds; none where a run left no queries behind."""
    logs: list[QueryLog] = []
    for run in row.runs:
        if run.folder is None or not query_file(run.folder, row.split).is_file():
            return {}
        logs.append(read_queries(run.folder, row.split))
    ranks = [log.ranks[row.protocol] for log in logs if row.protocol in log.ranks]
    same = all(np.array_equal(log.text_to_image, logs[0].text_to_image) for log in logs)
    if len(ranks) < len(logs) or not same:
        return {}
    fold = logs[0].folds.get(row.protocol)
    return recall_intervals(ranks, logs[0].text_to_image, fold, resamples=resamples)
