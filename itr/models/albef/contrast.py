"""The scores of ALBEF's image-text contrast with momentum distillation (sections 3.2 and 3.3).

B pairs, E joint width, Q queue size. v, t: image and caption embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from itr.losses.score import Scores
from itr.models.albef.unimodal import MomentumFeatures
from itr.nn.queue import queue_products, soft_targets

if TYPE_CHECKING:
    from itr.models.albef.model import ALBEF


def momentum_scores(
    model: ALBEF, v: Tensor, t: Tensor, keys: MomentumFeatures, ids: Tensor, alpha: float
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


def _matches(model: ALBEF, ids: Tensor) -> Tensor:
    """[B, B + Q] bool. In pre-training only the paired caption or image is a match."""
    if not model.pretrains:
        return ids[:, None] == torch.cat([ids, model.text_queue.ids])[None, :]
    columns = len(ids) + len(model.text_queue)
    return torch.eye(len(ids), columns, dtype=torch.bool, device=ids.device)
