"""Weakly supervised grounding: the box that an expression means, from where a model looks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from itr.batch import Batch
from itr.data.items import Box, Expression
from itr.data.loading.loader import ItemFields
from itr.data.records import Split
from itr.data.text.tokenizer import Tokenizer
from itr.errors import DataError
from itr.evaluation.grounding_boxes import (
    CORRECT_IOU,
    ChosenBox,
    box_iou,
    box_of_map,
    box_scores,
    choose_box,
    points_inside,
    upsample,
    window_grid,
)
from itr.evaluation.predictions import Predictions
from itr.models.albef import ALBEF
from itr.models.albef.grounding_maps import MODES, match_maps
from itr.options import configured, option
from itr.tasks.item_evaluator import ItemEvaluator, Outputs, accuracies
from itr.tasks.item_task import ItemTask
from itr.tasks.task import EvaluationSettings
from itr.view import View

PROPOSALS = ("file", "map", "grid")
FALLBACKS = ("largest", "previous")


@dataclass
@configured("task/grounding.yaml", "task")
class GroundingConfig:
    """Options of ``task=grounding``."""

    name: str = option()
    map: str = option(choices=MODES)
    block: int | None = option(at_least=0)
    proposals: str = option(choices=PROPOSALS)
    fallback: str = option(choices=FALLBACKS)
    threshold: float = option(above=0, at_most=1)


class GroundingTask(ItemTask):
    """Expressions that mean an object of a picture; the model never sees a box in training."""

    Config = GroundingConfig

    def batch_fields(self, split: Split, view: View, tokenizer: Tokenizer) -> ItemFields | None:
        """Nothing: boxes are not used in training."""
        return None

    def evaluator(self, split: Split, settings: EvaluationSettings) -> GroundingEvaluator:
        """Chooses a box for every expression."""
        return GroundingEvaluator(split, settings, self.config)


class GroundingEvaluator(ItemEvaluator):
    """From the map of an expression to a box; right if its IoU with the object's is 0.5."""

    protocol = "grounding"
    needs_gradient = True
    share_images = True

    def __init__(self, data: Split, settings: EvaluationSettings, config: GroundingConfig):
        super().__init__(data, settings)
        self.config = config
        self.expressions = [item for item in data.items or () if isinstance(item, Expression)]
        if config.proposals == "file" and not any(item.proposals for item in self.expressions):
            raise DataError(
                f"{data.source}: no expression of split {data.name} has proposals, so that no box "
                "can be chosen; put a detector's boxes beside it (dets.json: image id -> boxes), "
                "or pass task.proposals=map or task.proposals=grid"
            )

    def outputs(self, model: ALBEF, batch: Batch) -> dict[str, Tensor]:
        """Maps [B, g, g]."""
        return {"maps": match_maps(model, batch, self.config.map, self.config.block)}

    def predict(self, outputs: Outputs) -> Predictions:
        """The chosen boxes, whether they are right, and whether the map's maximum is inside."""
        previous: Box | None = None
        count = len(self.expressions)
        boxes: list[list[float] | None] = [None] * count
        details: list[dict[str, Any]] = [{}] * count
        scores = np.full(count, np.nan)
        for row in self._file_order():
            item = self.expressions[row]
            chosen, details[row] = self._choose(item, outputs["maps"][row], previous)
            if chosen is not None:
                boxes[row] = [round(float(side), 2) for side in chosen.box]
                if item.box is not None:
                    scores[row] = box_iou(chosen.box, item.box) >= CORRECT_IOU
                previous = chosen.box
        return Predictions(
            predicted=boxes,
            truth=[None if item.box is None else list(item.box) for item in self.expressions],
            scores=scores,
            details=details,
            **self.described(),
        )

    def _file_order(self) -> list[int]:
        """The items as their file lists them, for ``task.fallback=previous``; a split holds them
        by picture."""
        positions = [number for record in self.data.records for number in record.caption_ids]
        return np.argsort(positions, kind="stable").tolist()

    def _choose(
        self, item: Expression, evidence: np.ndarray, previous: Box | None
    ) -> tuple[ChosenBox | None, dict[str, Any]]:
        """The box of an expression, and notes about it. None: it has no proposals."""
        width, height = item.size or (evidence.shape[1], evidence.shape[0])
        full = upsample(evidence, height, width)
        detail: dict[str, Any] = {"proposals": self.config.proposals}
        if item.box is not None:
            detail["pointing"] = points_inside(full, item.box)
        if self.config.proposals == "map":
            chosen = box_of_map(full, self.config.threshold)
        else:
            grid = self.config.proposals == "grid"
            boxes = window_grid(height, width) if grid else item.proposals
            if not boxes:
                detail["without_proposals"] = True
                return None, detail
            chosen = choose_box(box_scores(full, boxes), boxes, self.config.fallback, previous)
        if chosen.without_evidence:
            detail["without_evidence"] = True
        return chosen, detail

    def metrics(self, outputs: Outputs, predictions: Predictions) -> dict[str, Any]:
        """Accuracy at IoU 0.5 over expressions, the pointing game, and what was left out."""
        found: dict[str, Any] = {**accuracies(predictions), "proposals": self.config.proposals}
        found["map"] = self.config.map
        pointed = np.array([d.get("pointing", np.nan) for d in predictions.details], float)
        for subset, members in dataclasses.replace(predictions, scores=pointed).scored():
            key = "pointing" if subset is None else f"{subset}/pointing"
            found[key] = 100.0 * float(pointed[members].mean())
        counts = Counter(key for detail in predictions.details for key in detail)
        for key in ("without_proposals", "without_evidence"):
            found[f"n_{key}"] = counts[key]
        if self.config.proposals != "file":
            found["remark"] = (
                f"boxes from the {self.config.proposals}, without a detector's proposals: not "
                "comparable with published figures"
            )
        return found
