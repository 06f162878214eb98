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
from itr.evaluation.query_log import QueryLog, query_log_path, read_queries
from itr.evaluation.statistics import Interval, named_intervals, spread
from itr.results.columns import kind_of
from itr.results.terminal_tables import RESULTS, read_results

SKIPPED = ("wandb", "checkpoints")  # folders of a run that hold no other run
# What, beside the configuration without its seed, two rows must share to be seeds of one row.
SAME = ("model", "data", "loss", "select_on", "official", "ensemble", "trained_on")
SPLIT_SAME = ("tie_break", "rerank_k", "n_images", "n_captions", "precision", "data_hash")
SIGNS = ("i2t_r1", "rsum", "top1")  # one of them is among the metrics of every protocol
OWN = (
    "n_images",
    "n_captions",
    "captions",
    "folds",
    "within",
    "directions_skipped",
)  # by protocol
JOINED = ("model", "loss", "select_on", "trained_on", "seed")  # of an ensemble: one for each model


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
    runs: list[Found] = field(default_factory=list)
    each: list[dict[str, float]] = field(default_factory=list)  # metric -> value, a seed each
    intervals: dict[str, Interval] = field(default_factory=dict)

    def fact(self, key: str) -> Any:
        """A field of the results (the seeds share it), of the protocol or of the whole."""
        results = self.runs[0].results
        places = [f"{self.split}/{self.protocol}/", f"{self.split}/", ""]
        if key in OWN and self.protocol != results.get(f"{self.split}/protocol", "full"):
            places = places[:1]
        for place in places:
            if (found := results.get(f"{place}{key}")) is not None:
                parts = str(found).split(",")
                if self.member and key in JOINED and len(parts) == results.get("ensemble"):
                    return parts[self.member - 1]
                return found
        return None

    @property
    def member(self) -> int:
        """Which of an ensemble's models the row is of, counted from 1; 0: no single one."""
        name, _, number = self.variant.partition("_")
        return int(number) if name == "member" else 0

    @property
    def stage(self) -> str | None:
        """Which published rows are alike: "" or "first_stage"; None: there are none."""
        if self.member or not self.variant:
            return ""
        return self.variant if self.variant == "first_stage" else None

    @property
    def values(self) -> dict[str, list[float]]:
        """One value a seed of each metric that all seeds have."""
        first = self.each[0]
        return {m: [e[m] for e in self.each] for m in first if all(m in e for e in self.each)}

    def mean(self, metric: str) -> tuple[float | None, float | None]:
        """Mean and deviation over seeds; None where there is nothing to say."""
        values = self.values.get(metric)
        return spread(values) if values else (None, None)

    @property
    def ensemble(self) -> int:
        """How many models the scores are of; an ensemble's members stand for themselves."""
        return 1 if self.member else int(self.fact("ensemble") or 1)

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

    Of the same seed twice (a run, and a later evaluation of it), and of the same checkpoint or
    score file twice where there is no seed, the later file counts.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for run in found:
        for prefix, protocol, variant in _places(run.results, split):
            key = (*_key(run, split), protocol, variant)
            row = rows.setdefault(key, Row("", split, protocol, variant))
            _add(row, run, _values(run.results, prefix, protocol))
    made = list(rows.values())
    _name(made)
    logs: dict[Path, QueryLog | None] = {}
    for row in made if resamples else ():
        row.intervals = _intervals(row, logs, resamples)
    return made


def _values(results: Mapping[str, Any], prefix: str, protocol: str) -> dict[str, float]:
    wanted = kind_of(protocol).metrics
    values = {m: results[key] for m in wanted if (key := f"{prefix}{m}") in results}
    if "reported" in values:  # the name of the metric that papers report
        values["reported"] = results[f"{prefix}{values['reported']}"]
    return values


def _places(results: Mapping[str, Any], split: str) -> list[tuple[str, str, str]]:
    """(prefix of the keys, protocol, variant) of all that was measured on ``split``."""
    first = str(results.get(f"{split}/protocol", "full"))
    places: dict[tuple[str, str, str], None] = {}
    for key in results:
        parts = key.split("/")
        if parts[0] != split or parts[-1] not in SIGNS:
            continue
        inner = parts[1:-1]
        protocol = next((part for part in inner if part in PROTOCOLS), first)
        variant = "/".join(part for part in inner if part not in PROTOCOLS)
        places["".join(f"{part}/" for part in parts[:-1]), protocol, variant] = None
    return list(places)


def _key(run: Found, split: str) -> tuple[Any, ...]:
    results = run.results
    hashes = (results.get(name) for name in ("seedless_hash", "checkpoint_sha256", "scores_sha256"))
    own = next(filter(None, hashes), str(run.folder or run.name))
    shared = [json.dumps(results.get(key)) for key in SAME]
    return (own, *shared, *(results.get(f"{split}/{key}") for key in SPLIT_SAME))


def _add(row: Row, run: Found, values: Mapping[str, float]) -> None:
    for i, other in enumerate(row.runs):
        if other.results.get("seed") == run.results.get("seed"):
            if _time(run) >= _time(other):
                row.runs[i], row.each[i] = run, dict(values)
            return
    row.runs.append(run)
    row.each.append(dict(values))


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
            row.name += f", {row.variant.replace('/', ', ').replace('_', ' ')}"
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


def _intervals(row: Row, read: dict[Path, QueryLog | None], resamples: int) -> dict[str, Interval]:
    """Intervals of the mean over seeds; none where a run left no queries behind. ``read``: logs
    that other rows have read."""
    name = "/".join(part for part in (row.variant, row.protocol) if part)
    logs: list[QueryLog] = []
    for run in row.runs:
        log = None if run.folder is None else _log(run.folder, row.split, read)
        if log is None or name not in log.all_ranks:
            return {}
        logs.append(log)
    owner, fold = logs[0].text_to_image, logs[0].folds.get(row.protocol)
    if not all(np.array_equal(log.text_to_image, owner) for log in logs):
        return {}
    found = named_intervals([log.all_ranks for log in logs], name, owner, fold, resamples)
    return {metric: interval for metric, interval in found.items() if metric in row.values}


def _log(folder: Path, split: str, read: dict[Path, QueryLog | None]) -> QueryLog | None:
    if folder not in read:
        there = query_log_path(folder, split).is_file()
        read[folder] = read_queries(folder, split) if there else None
    return read[folder]
