"""Triplet losses. N queries (anchors), M candidates, P positive (anchor, candidate) pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import ScoreLoss, Scores
from itr.options import configured_arguments, option


def matching_pairs(match: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows and columns [count] of the True entries of ``match`` [N, M], in row-major order.

    Like `nonzero`, but without a host synchronization, because ``count`` is known on the host.
    """
    flat = match.flatten()
    index = torch.where(flat, flat.cumsum(0) - 1, count)  # False entries go to a discarded slot
    pairs = index.new_zeros(count + 1)
    pairs.scatter_(0, index, torch.arange(len(flat), device=match.device))
    return pairs[:count] // match.shape[1], pairs[:count] % match.shape[1]


class DistanceWeightedTriplet(ScoreLoss):
    """Triplet loss with distance-weighted sampling of one negative per positive pair. Cosines only.

    The sum over pairs and both directions of relu(margin + s_an - s_ap) (Wu et al. 2017, equations
    4 and 5, as in HREM). The sampling weight is log w = (2-n) ln d - (n-3)/2 ln(1 - d^2/4) with
    d = sqrt(2 - 2s), at least ``floor``, and n = ``dimension``; negatives at distance ``cutoff`` or
    more are never drawn. An anchor without candidates is left out (``exhausted="drop"``). With
    ``"zero"``, as in the authors' code, one such anchor makes the loss of its direction 0.
    ``report`` counts these anchors.
    """

    needs_cosine = True
    variants = ("exhausted=zero",)

    @configured_arguments("loss/distance_triplet.yaml", "loss.default")
    def __init__(
        self,
        margin: float = option(),
        cutoff: float = option(),
        floor: float = option(above=0),
        dimension: int = option(at_least=1),
        exhausted: str = option(choices=("drop", "zero")),
    ):
        super().__init__()
        if not 0.0 < floor < cutoff:
            raise ConfigError(f"cutoff={cutoff}, floor={floor}: expected 0 < floor < cutoff")
        self.margin, self.cutoff, self.floor = margin, cutoff, floor
        self.dimension, self.exhausted = dimension, exhausted

    def forward(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        """The sum of both directions, a scalar."""
        return self.directions([scores, scores.reverse()], draws).sum()

    def directions(self, sides: Sequence[Scores], draws: Draws) -> Tensor:
        """The loss of each of ``sides`` with its queries as anchors; one draw per side, in order.

        Sides are stacked by rows, so that two need no more operations than one. If the number of
        matches is unknown (repeated images in a queue), a negative is drawn for every entry and
        only those of matches are used: the same distribution without a host synchronization.
        """
        with torch.autocast(sides[0].values.device.type, enabled=False):
            width = max(side.values.shape[1] for side in sides)
            values = torch.cat([_widen(side.values.float(), width, -2.0) for side in sides])
            match = torch.cat([_widen(side.match, width, False) for side in sides])
            weight, exhausted = self.sampling_weights(values, match)
            rows = counts = [len(side.values) for side in sides]
            known = [side.n_match for side in sides if side.n_match is not None]
            anchor = torch.arange(len(values), device=values.device)
            if len(known) == len(sides):
                counts = known
                anchor, positive = matching_pairs(match, sum(counts))
                drawn = [draws.categorical(weights) for weights in weight[anchor].split(counts)]
                s_an, s_ap = values[anchor, torch.stack([torch.cat(drawn), positive])]
                cost = F.relu(s_an - s_ap + self.margin)
            else:
                s_an = values.gather(1, draws.columns(weight))
                cost = F.relu(s_an - values + self.margin).masked_fill(~match, 0.0).sum(dim=1)
            if any(side.weight is not None for side in sides):
                cost = cost * torch.cat([_row_weight(side) for side in sides])[anchor]
            if self.exhausted == "drop":
                cost = cost.masked_fill(exhausted[anchor], 0.0)
            self.report = {"exhausted_anchors": exhausted.sum()}
            totals = torch.stack([costs.sum() for costs in cost.split(counts)])
            if self.exhausted == "zero":
                any_exhausted = torch.stack([flags.any() for flags in exhausted.split(rows)])
                totals = totals.masked_fill(any_exhausted, 0.0)
            return totals

    def sampling_weights(self, values: Tensor, match: Tensor) -> tuple[Tensor, Tensor]:
        """Sampling probabilities [N, M] of negatives per anchor, and the anchors without any [N].

        Rows of the latter are 0. No gradient. In cosines, 1 - d^2/4 = (1 + s)/2. Matches and
        invalid cosines (above 1 by rounding) are never drawn, but count with log-weight 0 in the
        maximum of their row.
        """
        s, n = values.detach(), self.dimension
        constant = math.log(2.0) * ((2.0 - n) / 2.0 + (n - 3.0) / 2.0)
        clamped = s.clamp(max=1.0 - self.floor**2 / 2.0)  # distances of at least the floor
        log_weight = (-clamped).log1p_().mul_((2.0 - n) / 2.0).add_(constant)
        log_weight = log_weight.add_(clamped.log1p(), alpha=-(n - 3.0) / 2.0)
        invalid = match | (s > 1.0)
        log_weight.masked_fill_(invalid, 0.0).nan_to_num_(0.0, 0.0, 0.0)
        weight = (log_weight - log_weight.amax(dim=1, keepdim=True)).exp_()
        too_far = s <= 1.0 - self.cutoff**2 / 2.0
        weight.masked_fill_(invalid | too_far, 0.0)
        total = weight.sum(dim=1, keepdim=True)
        return weight.div_(total + 1e-20), total.squeeze(1) == 0.0


def _widen(matrix: Tensor, width: int, value: float) -> Tensor:
    """Pad columns with ``value``, so that matrices of different widths can be stacked."""
    missing = width - matrix.shape[1]
    return F.pad(matrix, (0, missing), value=value) if missing else matrix


def _row_weight(scores: Scores) -> Tensor:
    return scores.values.new_ones(len(scores.values)) if scores.weight is None else scores.weight


class Triplet(ScoreLoss):
    """Triplet loss against the query's pair: relu(margin + s_ij - s_i,own), both directions added.

    ``negatives`` is ``sum`` (over all), ``hardest`` (VSE++, Faghri et al. 2018, equation 5) or
    ``warmup`` (the sum for ``warmup_epochs``, then the hardest). ``mask_same_image`` excludes
    repeats of the query's image from the negatives; otherwise only its pair is excluded.
    """

    variants = ("negatives=sum", "negatives=hardest", "mask_same_image=false")

    @configured_arguments("loss/triplet.yaml", "loss.default")
    def __init__(
        self,
        margin: float = option(),
        negatives: str = option(choices=("hardest", "sum", "warmup")),
        warmup_epochs: int = option(at_least=0),
        mask_same_image: bool = option(),
    ):
        super().__init__()
        self.margin, self.negatives = margin, negatives
        self.warmup_epochs, self.mask_same_image = warmup_epochs, mask_same_image

    def forward(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        """The sum of both directions, a scalar."""
        hardest = self.negatives == "hardest" or (
            self.negatives == "warmup" and clock.epoch >= self.warmup_epochs
        )
        with torch.autocast(scores.values.device.type, enabled=False):
            return self._direction(scores, hardest) + self._direction(scores.reverse(), hardest)

    def _direction(self, scores: Scores, hardest: bool) -> Tensor:
        values, own = scores.values.float(), scores.own[:, None]
        cost = F.relu(self.margin + values - values.gather(1, own))
        columns = torch.arange(values.shape[1], device=values.device)
        masked = scores.match if self.mask_same_image else columns == own
        cost = cost.masked_fill(masked, 0.0)
        cost = cost.max(dim=1).values if hardest else cost.sum(dim=1)
        return (cost if scores.weight is None else cost * scores.weight).sum()
