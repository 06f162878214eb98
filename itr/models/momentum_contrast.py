"""What ALBEF and BLIP share: a contrast with momentum features and queues, and hard negatives.

Li et al., "Align before Fuse" (NeurIPS 2021), sections 3.2 and 3.3; BLIP (ICML 2022) keeps them.

B pairs, N image tokens, E joint width, Q queue size. v, t: image and caption embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itr import parallel
from itr.clock import Clock
from itr.draws import Draws
from itr.losses.score import Scores
from itr.models.base import RetrievalModel
from itr.nn.hard_negatives import HardNegatives, draw_negatives, negative_weights
from itr.nn.queue import FeatureQueue, queue_products, soft_targets

TEMPERATURES = (0.001, 0.5)


class MomentumFeatures(NamedTuple):
    """Features of a batch from the momentum encoders, without gradient."""

    images: Tensor  # [B, E]
    texts: Tensor  # [B, E]
    image_tokens: Tensor  # [B, N, Dv]


class MomentumContrast(RetrievalModel):
    """A model with a learned temperature and queues of momentum embeddings.

    Its options include ``distill``, ``hard_negatives`` and ``negative_floor``.
    """

    config: Any
    temperature: Tensor
    image_queue: FeatureQueue
    text_queue: FeatureQueue
    pending: tuple[MomentumFeatures, Tensor] | None = None  # keys of this step, and image ids

    @property
    def pretrains(self) -> bool:
        """Whether only the paired caption or image is a match."""
        return False

    def after_step(self, clock: Clock) -> None:
        """Enqueue the momentum embeddings of all ranks, in rank order."""
        if self.pending is None:
            return
        (keys, ids), self.pending = self.pending, None
        self.image_queue.enqueue(parallel.all_gather(keys.images))
        gathered = None if self.pretrains else parallel.all_gather(ids)
        self.text_queue.enqueue(parallel.all_gather(keys.texts), gathered)

    def contrast(
        self, v: Tensor, t: Tensor, keys: MomentumFeatures, ids: Tensor, alpha: float
    ) -> Scores:
        """Cosines of ``v``, ``t`` [B, E] with the momentum embeddings; see `momentum_scores`."""
        return momentum_scores(self, v, t, keys, ids, alpha)

    def negatives(self, scores: Scores, draws: Draws) -> HardNegatives:
        """A negative image for each caption and a negative caption for each image."""
        back = scores.reverse()
        count, strength = len(scores.values), (1.0 / self.temperature).detach()
        forbidden = scores.match[:, :count]
        if not self.config.hard_negatives:
            strength = torch.zeros_like(strength)
        floor = self.config.negative_floor
        return draw_negatives(
            negative_weights(back.values[:, :count] * strength, forbidden, floor),
            negative_weights(scores.values[:, :count] * strength, forbidden, floor),
            draws,
        )


def momentum_scores(
    model: MomentumContrast, v: Tensor, t: Tensor, keys: MomentumFeatures, ids: Tensor, alpha: float
) -> Scores:
    """Cosines of ``v``, ``t`` [B, E] with the momentum embeddings of the batch, then the queue.

    Values are [B, B + Q] in both directions; with soft targets (equation 6) of weight ``alpha`` if
    the loss takes them. ``ids`` [B] are those of the images.
    """
    with torch.autocast(v.device.type, enabled=False):
        scale, match = 1.0 / model.temperature, _matches(model, ids)
        slot = model.slots["itc"] if "itc" in model.slots else None
        soft = model.config.distill and slot is not None and bool(slot.uses_soft)
        t_queue, v_queue = model.text_queue.features, model.image_queue.features

        def one_way(student: Tensor, teacher: Tensor, other: Tensor, queue: Tensor) -> Scores:
            values = queue_products(student, other, queue)
            target = None
            if soft:
                logits = queue_products(teacher, other, queue) * scale
                target = soft_targets(logits, match, alpha)
            rows = torch.arange(len(ids), device=ids.device)
            return Scores(values, match, rows, soft=target, scale=scale)

        i2t = one_way(v, keys.images, keys.texts, t_queue)
        return replace(i2t, back=one_way(t, keys.texts, keys.images, v_queue))


def _matches(model: MomentumContrast, ids: Tensor) -> Tensor:
    """[B, B + Q] bool. In pre-training only the paired caption or image is a match."""
    if not model.pretrains:
        return ids[:, None] == torch.cat([ids, model.text_queue.ids])[None, :]
    columns = len(ids) + len(model.text_queue)
    return torch.eye(len(ids), columns, dtype=torch.bool, device=ids.device)
