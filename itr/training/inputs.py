"""What a trainer is given: the model and data to train, and where the run is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from itr.clock import Clock
from itr.data.loading.loader import TrainLoader
from itr.data.records import Split
from itr.evaluation.split_evaluator import SplitEvaluator
from itr.models.base import Model
from itr.results.trackers.tracker import Tracker
from itr.tasks.task import Task
from itr.training.config import TrainConfig


@dataclass
class TrainingInputs:
    """The model, its training data, and the evaluator that selects the checkpoint."""

    model: Model  # on ``device``
    loader: TrainLoader
    split: Split  # that ``loader`` reads
    evaluator: SplitEvaluator
    task: Task
    device: torch.device
    precision: str  # fp32, tf32, bf16 or fp16


@dataclass
class RunOutput:
    """The run directory, the tracker, and the metadata that every checkpoint carries."""

    folder: Path
    tracker: Tracker
    meta: dict[str, Any]


def plan_clock(config: TrainConfig, batches_per_epoch: int) -> Clock:
    """The clock of a new run: how many updates and epochs ``config`` plans."""
    accumulate = min(config.accumulate, batches_per_epoch)
    updates_per_epoch = -(-batches_per_epoch // accumulate)
    planned = config.trainer.max_steps or config.trainer.epochs * updates_per_epoch
    return Clock(
        batches_per_epoch=batches_per_epoch,
        total_updates=planned,
        total_epochs=-(-planned // updates_per_epoch),
        accumulate=accumulate,
    )
