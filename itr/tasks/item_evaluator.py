"""Evaluates a task with items: predicts every item once, on one device or several.

Q items, B of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.batch import Batch
from itr.data.loading.item_batches import consecutive, item_batches
from itr.data.records import Split
from itr.data.splits import ROLES, role_of
from itr.errors import DataError
from itr.evaluation.encode import AUTOCAST, Progress, eval_mode
from itr.evaluation.predictions import ACCURACY, Predictions
from itr.evaluation.split_evaluator import SplitEvaluator
from itr.models.base import Model
from itr.parallel import all_gather_objects, stop_all_ranks, world_size
from itr.tasks.task import EvaluationSettings

Outputs = dict[str, np.ndarray]  # name -> values [Q, ...]


class ItemEvaluator(SplitEvaluator):
    """Predicts the items of a split with a model, and measures the predictions.

    Raises DataError for a split without items.
    """

    protocol: str  # name of the task, which takes the place of a protocol in results
    needs_gradient = False  # whether a prediction needs a backward pass
    share_images = False  # whether `outputs` takes a batch with `Batch.image_of`

    def __init__(self, data: Split, settings: EvaluationSettings):
        if data.n_captions == 0:
            raise DataError(f"{data.source}: split {data.name} has no items; nothing to evaluate")
        self.data, self.settings = data, settings

    def run(
        self, model: Any, progress: Progress | None = None, *, with_query_log: bool = False
    ) -> dict[str, Any]:
        """Flat metrics in per cent and counts; also fills ``predictions``.

        Items without a published answer are predicted, not scored.
        """
        outputs = self.collect(model, progress)
        self.predictions = self.predict(outputs)
        metrics = self.metrics(outputs, self.predictions)
        scored = np.isfinite(self.predictions.scores)
        facts: dict[str, Any] = {
            "protocol": self.protocol,
            "split": self.data.name,
            "precision": self.settings.precision,
            "n_items": len(scored),
            "n_images": self.data.n_images,
        }
        if not scored.all():
            facts["n_unscored"] = int((~scored).sum())
        return {**metrics, **facts}

    def batches(self) -> list[np.ndarray]:
        """Indices of the items of each batch."""
        return consecutive(self.data.n_captions, self.settings.batch_size)

    @abstractmethod
    def outputs(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """What ``model`` says about ``batch``: tensors [B, ...]."""

    @abstractmethod
    def predict(self, outputs: Outputs) -> Predictions:
        """The predictions from the outputs of all items."""

    def metrics(self, outputs: Outputs, predictions: Predictions) -> dict[str, Any]:
        """Accuracy in per cent, over all items and over each subset; nothing without answers."""
        return accuracies(predictions)

    def collect(self, model: Model, progress: Progress | None) -> Outputs:
        """`outputs` of all items, from all ranks."""
        settings, total, done = self.settings, self.data.n_captions, 0
        dtype = AUTOCAST[settings.precision]
        rows: list[np.ndarray] = []
        found: dict[str, list[np.ndarray]] = {}
        batches = item_batches(
            self.data,
            settings.view,
            settings.tokens,
            self.batches(),
            settings.workers,
            finish_on_device=settings.device.type == "cuda",
            share_images=self.share_images,
        )
        with self._mode(model), stop_all_ranks():
            for batch in batches:
                assert batch.caption_id is not None
                rows.append(batch.caption_id.numpy())
                batch = batch.to(settings.device)
                with torch.autocast(settings.device.type, dtype, enabled=dtype is not None):
                    outputs = self.outputs(model, batch)
                for name, values in outputs.items():
                    found.setdefault(name, []).append(values.detach().float().cpu().numpy())
                done = min(total, done + len(rows[-1]) * world_size())
                if progress is not None:
                    progress("items", done, total)
        return _gathered(rows, found, total)

    @contextmanager
    def _mode(self, model: Model) -> Iterator[None]:
        with eval_mode(model):
            if self.needs_gradient:
                yield
            else:
                with torch.inference_mode():
                    yield

    def subsets(self) -> list[str | None]:
        """The named subset of each item, such as testA; None: there are none."""
        parts = [getattr(item, "part", None) for item in self.data.items or ()]
        name = self.data.name
        if not any(parts) and role_of(name) not in ROLES and "+" not in name:
            return [name] * self.data.n_captions
        if len(set(parts)) == 1 and role_of(str(parts[0])) in ROLES:
            return [None] * self.data.n_captions
        return parts or [None] * self.data.n_captions

    def described(self) -> dict[str, Any]:
        """The fields of `Predictions` that do not depend on the model."""
        records, owners = self.data.records, self.data.text_to_image.tolist()
        items = self.data.items
        return {
            "task": self.protocol,
            "ids": [item.id for item in items] if items else list(range(self.data.n_captions)),
            "image_ids": [records[owner].image_id for owner in owners],
            "texts": self.data.captions(),
            "subsets": self.subsets(),
        }


def accuracies(predictions: Predictions) -> dict[str, float]:
    """``accuracy`` in per cent over all items, and ``<subset>/accuracy``."""
    found: dict[str, float] = {}
    for subset, members in predictions.scored():
        prefix = "" if subset is None else f"{subset}/"
        found[f"{prefix}{ACCURACY}"] = 100.0 * float(predictions.scores[members].mean())
        if subset is not None:
            found[f"{prefix}n_items"] = int(members.sum())
    return found


def _gathered(rows: list[np.ndarray], found: dict[str, list[np.ndarray]], total: int) -> Outputs:
    """The outputs of all ranks by item. Each item comes from one rank."""
    own = (rows, found)
    merged: Outputs = {}
    for their_rows, theirs in all_gather_objects(own) if world_size() > 1 else [own]:
        for name, pieces in theirs.items():
            for where, values in zip(their_rows, pieces, strict=True):
                if name not in merged:
                    merged[name] = np.zeros((total, *values.shape[1:]), values.dtype)
                merged[name][where] = values
    return merged
