"""Pairwise sigmoid loss. N queries, M candidates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.clock import Clock
from itr.draws import Draws
from itr.losses.score import ScoreLoss, Scores
from itr.options import configured_arguments, option


class Sigmoid(ScoreLoss):
    """Mean over queries of -sum_j log sigmoid(z_ij (scale * s_ij + bias)), z_ij = 1 for a match and
    -1 otherwise (SigLIP, Zhai et al. 2023, algorithm 1). Every pair is scored independently.

    A square matrix holds each pair once, so it counts once; with different candidates per
    direction, the mean of both is taken. Row weights apply to rows and columns. The scale is
    initialized to 1/``temperature``, or is the model's with ``use_model_scale``; scale and ``bias``
    are learned unless ``learnable`` is false. A model that was trained with this loss passes its
    own scale and bias, from which it goes on; the loss's are not used. ``report`` holds both.
    """

    uses_bias = True

    variants = ("learnable=false", "use_model_scale=true", "learnable=false use_model_scale=true")

    @configured_arguments("loss/sigmoid.yaml", "loss.default")
    def __init__(
        self,
        temperature: float = option(above=0),
        bias: float = option(),
        learnable: bool = option(),
        use_model_scale: bool = option(),
    ):
        super().__init__()
        self.uses_scale, self.learns_scale = use_model_scale, learnable
        for name, value in (("log_scale", -math.log(temperature)), ("bias", bias)):
            if learnable:
                setattr(self, name, nn.Parameter(torch.tensor(value)))
            else:
                self.register_buffer(name, torch.tensor(value), persistent=False)

    log_scale: Tensor
    bias: Tensor

    def forward(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        """The loss, a scalar."""
        with torch.autocast(scores.values.device.type, enabled=False):
            scale, bias = self._affine(scores)
            self.report = {"scale": scale.detach(), "bias": bias.detach()}
            cost = _cost(scores, scale, bias)
            if scores.back is not None:
                back = _cost(scores.back, scale, bias)
                return (_mean(cost, scores.weight) + _mean(back, scores.back.weight)) / 2
            if scores.weight is None:
                return _mean(cost, None)
            return (_mean(cost, scores.weight) + _mean(cost.t(), scores.weight)) / 2

    def _affine(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Scale and bias, scalars."""
        if scores.scale is not None and scores.bias is not None:
            return scores.scale.float(), scores.bias.float()
        if self.uses_scale and scores.scale is not None:
            return scores.scale.float(), self.bias
        return self.log_scale.exp(), self.bias


def _cost(scores: Scores, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scores.values.float() * scale + bias
    return -F.logsigmoid(torch.where(scores.match, logits, -logits))


def _mean(cost: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over rows of the weighted row sums of ``cost`` [N, M]."""
    rows = cost.sum(dim=1)
    return (rows if weight is None else rows * weight).mean()
