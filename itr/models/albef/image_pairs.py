"""ALBEF for NLVR2: is a sentence true of a pair of images?

The fusion layers are pairs that share the projection of image keys and values; the first looks at
the first image, the second at the second. Source: section 5 of the paper (NLVR2) and the authors'
code.

B items, N image tokens, D text width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.models.albef.classifier import ALBEFClassifier
from itr.models.albef.encoders import image_tokens, with_pairs
from itr.nn.bert.fusion import KeysValues
from itr.nn.bert.halves import text_states


class ALBEFPairs(ALBEFClassifier):
    """ALBEF with paired fusion layers and a head for false and true."""

    tasks = ("nlvr2",)
    classes = ("false", "true")
    paired = True
    starts_from = ("nlvr2", "assignment", "pretrain", "retrieval", "grounding")

    def first_words(self, owner: nn.Module, batch: Batch) -> Tensor:
        """State [B, D] of the first word after it has seen both images."""
        assert batch.pixels is not None and batch.second_pixels is not None
        tokens, mask = self.words_of(batch)
        states = text_states(owner.get_submodule("text"), tokens, mask)
        fusion = owner.get_submodule("fusion")
        both = image_tokens(owner, torch.cat([batch.pixels, batch.second_pixels]))
        images = attend_to(fusion.keys_values(both))  # type: ignore[operator]
        return fusion(states, mask, images, first_only=True)[:, 0]

    def adopt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a model that looks at one image, each fusion layer becomes a pair."""
        return with_pairs(state, len(self.fusion.layers))


def attend_to(images: list[KeysValues]) -> list[KeysValues]:
    """What each fusion layer attends to, without copies: ``images`` holds the keys and values of
    the first image of every item, then of the second, for each pair of layers."""
    return [
        (first, second)
        for keys, values in images
        for first, second in zip(keys.chunk(2), values.chunk(2), strict=True)
    ]
