"""Evaluates the selection split during training and keeps the best checkpoint."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from itr import parallel
from itr.clock import Clock
from itr.evaluation.encode import Progress
from itr.nn.batch_norm import statistics
from itr.training import checkpointing
from itr.training.config import TrainConfig
from itr.training.console import log
from itr.training.inputs import RunOutput, TrainingInputs
from itr.training.parameters.weight_average import WeightAverage


class Validator:
    """Runs the evaluator of ``select_on``, logs its results, and saves the best weights.

    ``best`` holds the results, the update and the epoch (from 1) of the best validation so far; it
    is empty before the first one. With an ``average`` of the weights, it is what is evaluated and
    saved.
    """

    def __init__(
        self,
        config: TrainConfig,
        inputs: TrainingInputs,
        output: RunOutput,
        average: WeightAverage | None = None,
    ):
        self.config, self.inputs, self.output, self.average = config, inputs, output, average
        self.best: dict[str, Any] = {}

    @property
    def best_path(self) -> Path:
        """The checkpoint of the best validation."""
        return self.output.folder / "checkpoints" / checkpointing.BEST

    def run(self, clock: Clock, progress: Progress) -> None:
        """Evaluate the model at ``clock``. Raises Stopped where ``progress`` does."""
        with nullcontext() if self.average is None else self.average.in_place():
            self._run(clock, progress)

    def _run(self, clock: Clock, progress: Progress) -> None:
        started = time.perf_counter()
        if not self.config.runtime.sync_batchnorm:
            parallel.broadcast_tensors(statistics(self.inputs.model))
        results = self.inputs.evaluator.run(self.inputs.model, progress=progress)
        task = self.inputs.task
        improved = task.improves(results, self.best.get("results"))
        if improved:
            self.best = {"results": results, "updates": clock.updates, "epoch": clock.epoch + 1}
        split = self.config.select_on
        values = {f"{split}/{k}": v for k, v in results.items() if isinstance(v, int | float)}
        if (best := self.best["results"].get(task.selects)) is not None:
            values[f"{split}/best_{task.selects}"] = best
        values[f"{split}/seconds"] = time.perf_counter() - started
        self.output.tracker.log({"epoch": clock.epoch + 1, **values}, step=clock.updates)
        where = f"epoch {clock.epoch + 1}, update {clock.updates}, {split}"
        log.info("%s: %s%s", where, task.line(results), " (best so far)" if improved else "")
        if improved and parallel.rank() == 0:
            meta = {**self.output.meta, "best": self.best}
            checkpointing.save_best(self.best_path, self.inputs.model, meta)
