"""Statements about a picture (visual entailment) or two (NLVR2), and text assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.batch import Batch
from itr.data.items import Statement
from itr.data.loading.loader import ItemFields
from itr.data.records import Split
from itr.data.text.tokenizer import Tokenizer
from itr.draws import Draws
from itr.errors import DataError
from itr.evaluation.label_accuracy import UNLABELED, group_consistency, label_accuracy
from itr.evaluation.predictions import ACCURACY, Predictions
from itr.models.albef.entailment import ALBEFEntailment
from itr.models.albef.image_pairs import ALBEFPairs
from itr.models.albef.text_assignment import ALBEFAssignment
from itr.options import configured, option
from itr.tasks.item_evaluator import ItemEvaluator, Outputs, accuracies
from itr.tasks.item_task import ItemTask
from itr.tasks.task import EvaluationSettings
from itr.view import View

ASSIGNED_TOGETHER = 64  # captions of an evaluation batch; other images come from the same batch
FEWEST = 3  # captions of a batch of text assignment
ASSIGNMENTS = ("first", "second", "neither")


@dataclass
@configured("task/entailment.yaml", "task")
class StatementConfig:
    """Options of ``task=entailment``, ``task=nlvr2`` and ``task=assignment``."""

    name: str = option()


class EntailmentTask(ItemTask):
    """Does a picture entail a hypothesis, contradict it, or neither?"""

    Config = StatementConfig
    classes: tuple[str, ...] = ALBEFEntailment.classes

    def evaluator(self, split: Split, settings: EvaluationSettings) -> StatementEvaluator:
        """Classifies every statement."""
        return StatementEvaluator(split, settings, self.name, self.classes)


class Nlvr2Task(EntailmentTask):
    """Is a statement true of a pair of pictures?"""

    classes = ALBEFPairs.classes


class AssignmentTask(ItemTask):
    """Which of two pictures does a caption describe? The pre-training for NLVR2, on pairs."""

    Config = StatementConfig
    reads_pairs = True

    def batch_fields(self, split: Split, view: View, tokenizer: Tokenizer) -> ItemFields | None:
        """Nothing: the model draws the pictures itself."""
        return None

    def evaluator(self, split: Split, settings: EvaluationSettings) -> AssignmentEvaluator:
        """Assigns every caption, with pictures drawn in the same way each time."""
        return AssignmentEvaluator(split, settings)

    def line(self, results: Mapping[str, Any]) -> str:
        """The accuracy."""
        return f"accuracy {results[ACCURACY]:.2f} (%), of three classes"


class StatementEvaluator(ItemEvaluator):
    """The most probable class of every statement, the first one of equals."""

    share_images = True

    def __init__(
        self, data: Split, settings: EvaluationSettings, task: str, classes: tuple[str, ...]
    ):
        super().__init__(data, settings)
        self.protocol, self.classes = task, classes
        self.statements = [item for item in data.items or () if isinstance(item, Statement)]
        self.labels = np.array(
            [UNLABELED if item.label is None else item.label for item in self.statements],
            dtype=np.int64,
        )

    def outputs(self, model: ALBEFEntailment | ALBEFPairs, batch: Batch) -> dict[str, Tensor]:
        """Probabilities of the classes."""
        return {"probabilities": model.logits(batch).float().softmax(dim=1)}

    def predict(self, outputs: Outputs) -> Predictions:
        """The most probable classes by name."""
        chosen = outputs["probabilities"].argmax(axis=1)
        right = (chosen == self.labels).astype(np.float64)
        right[self.labels == UNLABELED] = np.nan
        return Predictions(
            predicted=[self.classes[index] for index in chosen],
            truth=[None if x == UNLABELED else self.classes[x] for x in self.labels],
            scores=right,
            details=[self._detail(*pair) for pair in zip(self.statements, outputs["probabilities"],
                                                         strict=True)],
            **self.described(),
        )  # fmt: skip

    def _detail(self, item: Statement, probabilities: np.ndarray) -> dict[str, Any]:
        detail: dict[str, Any] = {
            "probabilities": {
                name: round(float(p), 4)
                for name, p in zip(self.classes, probabilities, strict=True)
            }
        }
        if item.second is not None:
            detail["second_image_id"] = self.data.records[item.second].image_id
            detail["group"] = item.group
        return detail

    def metrics(self, outputs: Outputs, predictions: Predictions) -> dict[str, Any]:
        """Accuracy, that of each class, and the consistency of groups where there are any."""
        chosen = outputs["probabilities"].argmax(axis=1)
        found: dict[str, Any] = {
            **accuracies(predictions),
            **label_accuracy(chosen, self.labels, self.classes),
        }
        groups = np.array([item.group for item in self.statements], dtype=object)
        for subset, members in predictions.scored():
            right = chosen[members] == self.labels[members]
            consistency = group_consistency(right, groups[members].tolist())
            if consistency is not None:
                found["consistency" if subset is None else f"{subset}/consistency"] = consistency
        return found


class AssignmentEvaluator(ItemEvaluator):
    """Shows every caption two pictures of its batch, as in training, and asks which is its own.

    Batches and draws do not depend on the size of evaluation batches or the number of devices.
    """

    protocol = "assignment"

    def __init__(self, data: Split, settings: EvaluationSettings):
        super().__init__(data, settings)
        if data.n_images < FEWEST:
            raise DataError(
                f"{data.source}: split {data.name} has {data.n_images} images; task=assignment "
                f"needs at least {FEWEST}, since a caption is also shown two of others"
            )

    def batches(self) -> list[np.ndarray]:
        """Shuffled captions, since those of one picture are no alternatives for each other."""
        order = np.random.default_rng(0).permutation(self.data.n_captions)
        return np.array_split(order, -(-len(order) // ASSIGNED_TOGETHER))

    def outputs(self, model: ALBEFAssignment, batch: Batch) -> dict[str, Tensor]:
        """Which picture the model chooses, and which is right."""
        assert batch.caption_id is not None and batch.image_id is not None
        assert batch.token_mask is not None
        draws = Draws(int(batch.caption_id.min()), self.settings.device)
        states = model.states(batch)
        shown = model.assign(states["image"], batch.image_id, draws)
        logits = model.assignment_logits(states, batch.token_mask, shown)
        labels = torch.where(shown.valid, shown.labels, UNLABELED)
        return {"chosen": logits.argmax(dim=1), "labels": labels}

    def predict(self, outputs: Outputs) -> Predictions:
        """The picture chosen for each caption: the first, the second, neither."""
        chosen, labels = (outputs[name].astype(np.int64) for name in ("chosen", "labels"))
        right = (chosen == labels).astype(np.float64)
        right[labels == UNLABELED] = np.nan
        return Predictions(
            predicted=[ASSIGNMENTS[index] for index in chosen],
            truth=[None if x == UNLABELED else ASSIGNMENTS[x] for x in labels],
            scores=right,
            **self.described(),
        )
