"""Collects the results of run directories into rows: one row per configuration, over its seeds."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from itr.errors import DataError
from itr.evaluation.predictions import predictions_path, read_predictions
from itr.evaluation.protocols import PROTOCOLS
from itr.evaluation.query_log import QueryLog, query_log_path, read_queries
from itr.evaluation.statistics import Interval, item_intervals, named_intervals, spread
from itr.files import parse_yaml
from itr.results.results_file import RESULTS, read_results
from itr.results.row_labels import option_labels, training_length
from itr.results.run_folder import CONFIG
from itr.tasks.columns import TASKS, columns_of

SKIPPED_FOLDERS = ("wandb", "checkpoints")  # of a run; they contain no other run
# Besides the configuration without its seed, the fields that the seeds of one row share.
SHARED = ("model", "data", "loss", "select_on", "official", "ensemble", "trained_on",
          "rerank_checkpoint_sha256")  # fmt: skip
SHARED_BY_SPLIT = ("tie_break", "rerank_k", "n_images", "n_captions", "precision", "data_hash")
INDICATORS = ("i2t_r1", "rsum", "top1", "accuracy")  # every protocol reports at least one
PROTOCOL_FIELDS = ("n_images", "n_captions", "captions", "folds", "within_modality",
                   "directions_skipped")  # fmt: skip
MEMBER_FIELDS = ("model", "loss", "select_on", "trained_on", "seed")  # one per ensemble member
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRun:
    """The flat results and the configuration of a run directory or a Weights & Biases run."""

    name: str
    results: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None


@dataclass
class ResultRow:
    """One configuration under one protocol, over its seeds."""

    name: str
    split: str
    protocol: str
    variant: str  # "", first_stage, or the name of an additional row
    runs: list[StoredRun] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)  # metric -> value, per seed
    intervals: dict[str, Interval] = field(default_factory=dict)

    def fact(self, key: str) -> Any:
        """A field of the results, which all seeds share: of the protocol, the split or the run."""
        results = self.runs[0].results
        prefixes = [f"{self.split}/{self.protocol}/", f"{self.split}/", ""]
        if key in PROTOCOL_FIELDS and self.protocol != results.get(
            f"{self.split}/protocol", "full"
        ):
            prefixes = prefixes[:1]
        for prefix in prefixes:
            if (value := results.get(f"{prefix}{key}")) is not None:
                each = str(value).split(",")
                if self.member and key in MEMBER_FIELDS and len(each) == results.get("ensemble"):
                    return each[self.member - 1]
                return value
        return None

    @property
    def member(self) -> int:
        """Index of the ensemble member that the row shows, counted from 1; 0: not a member."""
        name, _, number = self.variant.partition("_")
        return int(number) if name == "member" else 0

    @property
    def stage(self) -> str | None:
        """Stage of comparable published rows: "" or "first_stage"; None: there are none."""
        if not self.variant and self.fact("rerank_checkpoint"):
            return None  # of two models
        if self.member or not self.variant:
            return ""
        return self.variant if self.variant == "first_stage" else None

    @property
    def values(self) -> dict[str, list[float]]:
        """One value per seed of each metric that all seeds have."""
        first = self.metrics[0]
        return {m: [e[m] for e in self.metrics] for m in first if all(m in e for e in self.metrics)}

    def mean(self, metric: str) -> tuple[float | None, float | None]:
        """Mean and standard deviation over seeds; None where undefined."""
        values = self.values.get(metric)
        return spread(values) if values else (None, None)

    def cost(self, key: str) -> float | None:
        """Mean over seeds of what training cost (``train_seconds``, ``gpu_hours``, ...).

        None if it is unknown, or of several trained models.
        """
        values = [run.results.get(key) for run in self.runs]
        known = [float(value) for value in values if isinstance(value, int | float)]
        return float(np.mean(known)) if known and self.ensemble == 1 else None

    @property
    def cost_text(self) -> str:
        """What training cost, for a table: "12.3 GPU-h, 4.5 GiB, 86.1 M"."""
        hours, seconds = self.cost("gpu_hours"), self.cost("train_seconds")
        parts = [f"{hours:.1f} GPU-h" if hours is not None else ""]
        if hours is None and seconds is not None:
            parts = [f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:,.0f} s"]
        for key, unit in (("peak_gpu_memory_gib", "GiB"), ("parameters_millions", "M")):
            if (value := self.cost(key)) is not None:
                parts.append(f"{value:.3g} {unit}")
        return ", ".join(filter(None, parts))

    @property
    def ensemble(self) -> int:
        """Number of models whose scores are averaged; 1 for a single ensemble member."""
        return 1 if self.member else int(self.fact("ensemble") or 1)

    @property
    def data(self) -> str:
        """Name of the evaluated dataset."""
        return str(self.fact("data") or "?")

    @property
    def seeds(self) -> list[Any]:
        """The seeds, in order."""
        return [run.results.get("seed") for run in self.runs]

    @property
    def training(self) -> str:
        """Length of the training; several lengths are separated by " / "."""
        lengths = (training_length(run.results, run.config) for run in self.runs)
        return " / ".join(filter(None, dict.fromkeys(lengths)))


def find_results(paths: Iterable[Path]) -> list[StoredRun]:
    """Read every results.json in or below ``paths``, sorted by folder.

    A folder whose files cannot be read is left out with a warning that names it. Raises DataError
    for a path that does not exist, and if nothing can be read.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; pass a run directory or a folder of runs")
        for file in sorted(path.rglob(RESULTS)):
            if not set(SKIPPED_FOLDERS) & set(file.relative_to(path).parts):
                folders[file.parent] = None
    if not folders:
        raise DataError(
            f"{', '.join(map(str, paths))}: no {RESULTS} in this folder or below; train first "
            "(python train.py), or evaluate with out=DIR"
        )
    runs, faults = list[StoredRun](), list[str]()
    for folder in folders:
        try:
            run = StoredRun(folder.name, read_results(folder), _read_config(folder), folder)
            runs.append(run)
        except DataError as error:
            faults.append(str(error))
    for fault in faults if runs else ():
        log.warning("%s; this run is left out", fault)
    if not runs:
        raise DataError("\n".join(faults))
    return runs


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = parse_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate the run again") from error
    return config if isinstance(config, dict) else {}


def collect(
    runs: Sequence[StoredRun], split: str = "test", resamples: int = 2000
) -> list[ResultRow]:
    """One row for each configuration, protocol and variant on ``split``; seeds share a row.

    If a seed occurs twice (a run and a later evaluation of it), or without a seed the same
    checkpoint or score file, the newer file is used.
    """
    by_key: dict[tuple[Any, ...], ResultRow] = {}
    for run in runs:
        for measured in _measured_on(run.results, split):
            key = (*_row_key(run, split), measured.protocol, measured.variant)
            new = ResultRow("", split, measured.protocol, measured.variant)
            _add_run(by_key.setdefault(key, new), run, _metrics(run.results, measured))
    rows = list(by_key.values())
    _set_names(rows)
    logs: dict[Path, QueryLog | None] = {}
    for row in rows if resamples else ():
        row.intervals = _intervals(row, logs, resamples)
    return rows


class _Measured(NamedTuple):
    """Where the metrics of one protocol and variant are in flat results."""

    prefix: str
    protocol: str
    variant: str


def _measured_on(results: Mapping[str, Any], split: str) -> list[_Measured]:
    """Everything that was measured on ``split``."""
    first = str(results.get(f"{split}/protocol", "full"))
    measured: dict[_Measured, None] = {}
    for key in results:
        words = key.split("/")
        if words[0] != split or words[-1] not in INDICATORS:
            continue
        inner = words[1:-1]
        if first in TASKS and inner:
            continue  # a subset, which is a column of its task
        protocol = next((word for word in inner if word in PROTOCOLS), first)
        variant = "/".join(word for word in inner if word not in PROTOCOLS)
        measured[_Measured("".join(f"{word}/" for word in words[:-1]), protocol, variant)] = None
    return list(measured)


def _metrics(results: Mapping[str, Any], measured: _Measured) -> dict[str, float]:
    names, prefix = columns_of(measured.protocol).metrics, measured.prefix
    values = {m: results[key] for m in names if (key := f"{prefix}{m}") in results}
    if "reported" in values:  # the name of the metric that papers report for this dataset
        values["reported"] = results.get(f"{prefix}{values['reported']}")
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _row_key(run: StoredRun, split: str) -> tuple[Any, ...]:
    results = run.results
    hashes = (results.get(name) for name in ("seedless_hash", "checkpoint_sha256", "scores_sha256"))
    identity = next(filter(None, hashes), str(run.folder or run.name))
    shared = [json.dumps(results.get(key)) for key in SHARED]
    return (identity, *shared, *(results.get(f"{split}/{key}") for key in SHARED_BY_SPLIT))


def _add_run(row: ResultRow, run: StoredRun, metrics: Mapping[str, float]) -> None:
    for i, other in enumerate(row.runs):
        if other.results.get("seed") == run.results.get("seed"):
            if _modified(run) >= _modified(other):
                row.runs[i], row.metrics[i] = run, dict(metrics)
            return
    row.runs.append(run)
    row.metrics.append(dict(metrics))


def _modified(run: StoredRun) -> float:
    return (run.folder / RESULTS).stat().st_mtime if run.folder else 0.0


def _set_names(rows: Sequence[ResultRow]) -> None:
    """Name rows by model, loss if it is not the model's default, and options that differ."""
    for row in rows:
        model, loss = row.fact("model") or row.runs[0].name, row.fact("loss")
        row.name = str(model) if loss in (None, model) else f"{model}, loss {loss}"
        if row.fact("tower") and row.fact("select_on") == "zero-shot":
            row.name += f", {_tower_label(str(row.fact('tower')))}"
        if row.fact("official"):
            row.name += ", authors' checkpoint"
        if row.fact("rerank_model") and row.variant != "first_stage":
            row.name += f", re-ranked by {row.fact('rerank_model')}"
        if row.variant:
            row.name += f", {row.variant.replace('/', ', ').replace('_', ' ')}"
    groups: dict[tuple[str, ...], list[ResultRow]] = {}
    for row in rows:
        groups.setdefault((row.name, row.data, row.protocol), []).append(row)
    for group in (group for group in groups.values() if len(group) > 1):
        labels = option_labels([row.runs[0].config for row in group])
        for row, label in zip(group, labels, strict=True):
            row.name += f" ({label or row.runs[0].name})"


def _tower_label(tower: str) -> str:
    """The name of a tower, or of its directory."""
    path = Path(tower.removeprefix("local-dir:"))
    return path.name if path.is_absolute() or tower.startswith("local-dir:") else tower


def _intervals(
    row: ResultRow, read: dict[Path, QueryLog | None], resamples: int
) -> dict[str, Interval]:
    """Intervals of the mean over seeds; empty if a run has no query log. ``read`` caches logs."""
    if row.protocol in TASKS:
        return _item_intervals(row, resamples)
    name = "/".join(word for word in (row.variant, row.protocol) if word)
    logs: list[QueryLog] = []
    for run in row.runs:
        log = None if run.folder is None else _read_log(run.folder, row.split, read)
        if log is None or name not in log.all_ranks:
            return {}
        logs.append(log)
    owner, fold = logs[0].text_to_image, logs[0].folds.get(row.protocol)
    if not all(np.array_equal(log.text_to_image, owner) for log in logs):
        return {}
    intervals = named_intervals([log.all_ranks for log in logs], name, owner, fold, resamples)
    return {metric: value for metric, value in intervals.items() if metric in row.values}


def _item_intervals(row: ResultRow, resamples: int) -> dict[str, Interval]:
    """That of the accuracy, the mean over seeds; empty if a run has no predictions."""
    folders = [run.folder for run in row.runs if run.folder is not None]
    files = [folder for folder in folders if predictions_path(folder, row.split).is_file()]
    if len(files) < len(row.runs):
        return {}
    try:
        seeds = [read_predictions(folder, row.split) for folder in files]
    except DataError as error:
        log.warning("%s; its row has no intervals", error)
        return {}
    if any(each.ids != seeds[0].ids for each in seeds):
        return {}
    mean = dataclasses.replace(seeds[0], scores=np.mean([each.scores for each in seeds], axis=0))
    owners = np.array(mean.image_ids)
    return item_intervals(row.split, mean, owners, resamples).get(f"{row.split}/", {})


def _read_log(folder: Path, split: str, read: dict[Path, QueryLog | None]) -> QueryLog | None:
    if folder not in read:
        exists = query_log_path(folder, split).is_file()
        try:
            read[folder] = read_queries(folder, split) if exists else None
        except DataError as error:
            log.warning("%s; its rows have no intervals", error)
            read[folder] = None
    return read[folder]
