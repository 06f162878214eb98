"""InfoNCE: cross-entropy over candidates. N queries, M candidates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.clock import Clock
from itr.draws import Draws
from itr.losses.score import ScoreLoss, Scores
from itr.options import configured_arguments, option


class InfoNCE(ScoreLoss):
    """Mean over queries of -sum_j target_ij log softmax_j(scale * s_ij); mean of both directions.

    The targets are the soft targets if given, else uniform over all matches of a row (CLIP with
    repeated images; Radford et al. 2021). Row weights multiply a row's term; the mean still divides
    by the number of rows. The scale is the model's if it has one and ``use_model_scale`` is set,
    else 1/``temperature``: fixed, or ``learnable`` and then clamped to ``max_scale``. ``report``
    holds the scale.
    """

    uses_soft = True
    variants = ("use_model_scale=false", "learnable=true", "learnable=true use_model_scale=false")

    @configured_arguments("loss/infonce.yaml", "loss.default")
    def __init__(
        self,
        temperature: float = option(above=0),
        learnable: bool = option(),
        use_model_scale: bool = option(),
        max_scale: float = option(above=0),
    ):
        super().__init__()
        log_scale = torch.tensor(-math.log(temperature))
        if learnable:
            self.log_scale: Tensor = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale, persistent=False)
        self.uses_scale, self.learns_scale, self.max_scale = use_model_scale, learnable, max_scale

    def forward(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        """The mean of both directions, a scalar."""
        with torch.autocast(scores.values.device.type, enabled=False):
            scale = self._scale(scores)
            self.report = {"scale": scale.detach()}
            return (_cross_entropy(scores, scale) + _cross_entropy(scores.reverse(), scale)) / 2

    def _scale(self, scores: Scores) -> Tensor:
        if self.uses_scale and scores.scale is not None:
            return scores.scale.float()
        scale = self.log_scale.exp()
        return scale.clamp(max=self.max_scale) if self.learns_scale else scale


def _cross_entropy(scores: Scores, scale: Tensor) -> Tensor:
    logits = scores.values.float() * scale
    if scores.soft is not None:
        cost = F.cross_entropy(logits, scores.soft.float(), reduction="none")
    elif scores.n_match == len(logits):  # one match per row: class indices suffice
        cost = F.cross_entropy(logits, scores.own, reduction="none")
    else:
        target = scores.match.float()
        target = target / target.sum(dim=1, keepdim=True)
        cost = F.cross_entropy(logits, target, reduction="none")
    return (cost if scores.weight is None else cost * scores.weight).mean()
