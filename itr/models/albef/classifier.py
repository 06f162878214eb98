"""A class for each text from what it becomes after it has seen its image or images.

Source: section 5 of the paper and the authors' code.

B items, C classes, D text width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.models.albef.config import ALBEFConfig
from itr.models.albef.encoders import ALBEFEncoders
from itr.models.base import Terms
from itr.nn.distillation import distilled_cross_entropy
from itr.view import Facts


class ALBEFClassifier(ALBEFEncoders):
    """ALBEF with a two-layer head on the first word. Its only term is ``label``."""

    term_names = ("label",)
    classes: ClassVar[tuple[str, ...]]  # their names, in the order of the labels
    paired: ClassVar[bool] = False  # each text has two images

    def __init__(
        self, config: ALBEFConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        self.build_encoders(self.paired)
        width = self.config.text.width
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(self.classes))
        )
        if self.config.distill:
            self.build_twin("vision", "text", "fusion", "head")

    @abstractmethod
    def first_words(self, owner: nn.Module, batch: Batch) -> Tensor:
        """State [B, D] of the first word, with the encoders of ``owner``: the model or its twin."""

    def logits(self, batch: Batch) -> Tensor:
        """Logits [B, C]."""
        return self.head(self.first_words(self, batch))

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Term ``label``."""
        states = self.states(batch) | self.frozen_states(batch)
        return self.terms_of(states, batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """What the head classifies."""
        return {"first": self.first_words(self, batch)}

    @torch.no_grad()
    def frozen_states(self, batch: Batch) -> dict[str, Tensor]:
        """The logits of the momentum copies."""
        if self.twin is None:
            return {}
        return {"teacher": self.twin["head"](self.first_words(self.twin, batch))}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The cross-entropy with labels and soft targets, and the accuracy as a report."""
        assert batch.labels is not None
        logits = self.head(states["first"])
        loss = distilled_cross_entropy(
            logits, batch.labels, states.get("teacher"), self.alpha(clock)
        )
        right = (logits.detach().argmax(dim=1) == batch.labels).float().mean()
        return Terms({"label": loss}, {"accuracy": 100.0 * right})
