"""Image-text retrieval, and pre-training on pairs, which is selected on retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from itr.data.config import DataConfig
from itr.data.layouts.registry import open_split
from itr.data.records import Split
from itr.evaluation.evaluator import Evaluator
from itr.options import configured, option
from itr.tasks.task import EvaluationSettings, Task
from itr.view import View


@dataclass
@configured("task/retrieval.yaml", "task")
class RetrievalTaskConfig:
    """Options of ``task=retrieval`` and ``task=pretrain``."""

    name: str = option()


class RetrievalTask(Task):
    """Images for a caption and captions for an image, measured by recalls and rSum."""

    Config = RetrievalTaskConfig
    selects = "rsum"
    reads_pairs = True

    def open_split(self, data: DataConfig, split: str, view: View, second: bool = False) -> Split:
        """The pairs of ``split``."""
        return open_split(data, split, view.kind, second=second)

    def evaluator(self, split: Split, settings: EvaluationSettings) -> Evaluator:
        """Ranks every caption for every image, and the reverse."""
        return Evaluator(
            split,
            settings.view,
            settings.tokens,
            protocols=settings.protocols,
            batch_size=settings.batch_size,
            tie_break=settings.tie_break,
            device=settings.device,
            precision=settings.precision,
            strict=settings.strict,
            rerank=settings.rerank,
            workers=settings.workers,
        )

    def line(self, results: Mapping[str, Any]) -> str:
        """Recalls, median ranks and rSum."""
        directions = []
        for way in ("i2t", "t2i"):
            recalls = " ".join(f"{results[f'{way}_{key}']:.1f}" for key in ("r1", "r5", "r10"))
            median = results.get(f"{way}_medr")  # unknown where only a short list was re-ranked
            ranks = "" if median is None else f" (median rank {median:g})"
            directions.append(f"{way} R@1/5/10 {recalls}{ranks}")
        return f"{', '.join(directions)}, rSum {results['rsum']:.1f}"
