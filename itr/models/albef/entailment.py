"""ALBEF for visual entailment: does an image entail a sentence, contradict it, or neither?

Source: section 5 of the paper (SNLI-VE) and the authors' code.
"""

from __future__ import annotations

from torch import Tensor, nn

from itr.batch import Batch
from itr.models.albef.classifier import ALBEFClassifier
from itr.models.albef.encoders import fused_states


class ALBEFEntailment(ALBEFClassifier):
    """ALBEF with a head for the three relations of an image and a sentence."""

    tasks = ("entailment",)
    classes = ("contradiction", "neutral", "entailment")
    starts_from = ("entailment", "pretrain", "retrieval", "grounding")

    def first_words(self, owner: nn.Module, batch: Batch) -> Tensor:
        """State [B, D] of the first word after it has seen the image."""
        assert batch.pixels is not None
        given = (batch.pixels, *self.words_of(batch))
        return fused_states(owner, *given, first_only=True, image_of=batch.image_of)[:, 0]
