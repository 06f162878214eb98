"""The outcome of an evaluation as an object, its flat keys, and lines that summarize it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.layouts.registry import DataConfig
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.predictions import Predictions
from itr.evaluation.query_log import QueryLog
from itr.evaluation.statistics import Interval, item_intervals, prefixed_intervals
from itr.jobs.query_files import save_predictions
from itr.tasks.task import Task

ECCV = (("map_at_r", "mAP@R"), ("rprecision", "R-P"), ("r1", "R@1"))
COUNTS = ("images", "classes", "templates")  # of a zero-shot classification


@dataclass
class EvaluatedCheckpoints:
    """What remains of evaluated checkpoints: an evaluator with its query log, and the data."""

    evaluator: Evaluator
    data: DataConfig
    paths: list[Path]  # of the checkpoints


@dataclass
class EvaluatedItems:
    """What remains of a task with items: the task and its predictions."""

    task: Task
    predictions: Predictions | None
    owners: np.ndarray  # [Q] index of each item's image
    data: DataConfig

    def write(self, folder: Path, split: str) -> list[str]:
        """Write the predictions and what a submission needs; returns lines about the latter."""
        if self.predictions is None:
            return []
        return save_predictions(self.task, self.predictions, folder, split, self.data)


@dataclass
class EvaluationOutcome:
    """Where the scores come from (``origin``), and the metrics of one split."""

    title: str
    split: str
    origin: dict[str, Any]
    metrics: dict[str, Any]
    query_logs: list[QueryLog] = field(default_factory=list)  # of a score file
    checkpoints: EvaluatedCheckpoints | None = None  # of a retrieval with checkpoints
    items: EvaluatedItems | None = None  # of a task other than retrieval

    def flat(self) -> dict[str, Any]:
        """Keys of ``results.json``: the origin, and the metrics below the name of the split."""
        return {**self.origin, **{f"{self.split}/{k}": v for k, v in self.metrics.items()}}

    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Confidence intervals of the recalls, by prefix of the flat keys."""
        if self.items is not None and self.items.predictions is not None:
            return item_intervals(self.split, self.items.predictions, self.items.owners)
        if self.checkpoints is None:
            if not self.query_logs:
                return {}
            log = self.query_logs[0]
            return prefixed_intervals(self.split, log.all_ranks, log.text_to_image, log.folds)
        evaluator = self.checkpoints.evaluator
        folds = {protocol.name: protocol.fold for protocol in evaluator.protocols if protocol.fold}
        owners = evaluator.retrieval_set.text_to_image
        return prefixed_intervals(self.split, evaluator.ranks, owners, folds)


def summary_lines(results: dict[str, Any]) -> list[str]:
    """One line for each group of flat ``results`` that the table of recalls does not contain."""
    lines = []
    for key in results:
        if key.endswith("top1"):
            lines.append(_accuracy_line(results, key.removesuffix("top1")))
        elif key.endswith("i2t_r1") and f"{key.removesuffix('i2t_r1')}i2t_r5" not in results:
            lines.append(_eccv_line(results, key.removesuffix("i2t_r1")))
        elif key.endswith(("i2i_r1", "t2t_r1")):
            lines.append(_within_modality_line(results, key[: -len("i2i_r1")], key[-6:-3]))
        elif key.endswith("directions_skipped"):
            lines.append(f"{key.rpartition('/')[0]}: not evaluated: {results[key]}")
    return lines


def _accuracy_line(results: dict[str, Any], prefix: str) -> str:
    counts = ", ".join(f"{results[f'{prefix}n_{what}']} {what}" for what in COUNTS)
    return (
        f"{results['data']}: top-1 {results[f'{prefix}top1']:.2f}, mean per class "
        f"{results[f'{prefix}mean_per_class']:.2f} ({counts})"
    )


def _eccv_line(results: dict[str, Any], prefix: str) -> str:
    """The metrics of ECCV Caption, which has no R@5."""
    numbers = [
        f"{way} {heading} {results[f'{prefix}{way}_{name}']:.1f}"
        for way in ("i2t", "t2i")
        for name, heading in ECCV
        if f"{prefix}{way}_{name}" in results
    ]
    return f"{prefix.rstrip('/')}: {', '.join(numbers)}"


def _within_modality_line(results: dict[str, Any], prefix: str, way: str) -> str:
    recalls = ", ".join(f"R@{k} {results[f'{prefix}{way}_r{k}']:.1f}" for k in (1, 5, 10))
    stage = f" ({results[f'{prefix}within_modality']})" if f"{prefix}within" in results else ""
    return f"{prefix.rstrip('/')}: {way} {recalls}{stage}"
