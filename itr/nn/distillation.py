"""Soft targets of a momentum model and their weight.

B items, C classes, A answers, T positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.clock import Clock


def ramped_weight(weight: float, warmup: bool, clock: Clock) -> float:
    """The weight of soft targets at ``clock``: with ``warmup`` it grows from 0 in epoch 0.

    Source: ALBEF, section 3.4 and the authors' code.
    """
    if not (warmup and clock.epoch == 0 and clock.batches_per_epoch):
        return weight
    return weight * min(1.0, clock.batch / clock.batches_per_epoch)


def distilled_cross_entropy(
    logits: Tensor, labels: Tensor, teacher: Tensor | None, alpha: float
) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy with the teacher's probabilities.

    The mean over B rows of ``logits`` and ``teacher`` [B, C], ``labels`` [B]. Source: ALBEF,
    section 3.4.
    """
    with torch.autocast(logits.device.type, enabled=False):
        hard = F.cross_entropy(logits.float(), labels)
        if teacher is None:
            return hard
        soft = F.cross_entropy(logits.float(), teacher.float().softmax(dim=1))
        return (1.0 - alpha) * hard + alpha * soft


def answer_costs(
    logits: Tensor, targets: Tensor, counted: Tensor, teacher: Tensor | None, alpha: float
) -> Tensor:
    """The cost [A] of each answer: the sum over its ids of the costs of `distilled_cross_entropy`.

    ``logits``, ``teacher`` [A, T, V]; ``targets``, ``counted`` [A, T]: the ids, and which of them
    count. Source: ALBEF, the appendix on VQA, and the authors' code.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_p = logits.float().log_softmax(dim=2)
        cost = -log_p.gather(2, targets[..., None])[..., 0]
        if teacher is not None:
            soft = -(teacher.float().softmax(dim=2) * log_p).sum(dim=2)
            cost = (1.0 - alpha) * cost + alpha * soft
        return (cost * counted).sum(dim=1)
