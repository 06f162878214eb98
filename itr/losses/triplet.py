"""Triplet losses. N queries (anchors), M candidates, P positive (anchor, candidate) pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import ScoreLoss, Scores


def matching_pairs(match: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows and columns [count] of the True entries of ``match`` [N, M], in row-major order.

    As `nonzero`, for a ``count`` that is known on the host, so that nobody asks the device.
    """
    flat = match.flatten()
    place = torch.where(flat, flat.cumsum(0) - 1, count)  # the rest lands behind the end
    pairs = place.new_zeros(count + 1)
    pairs.scatter_(0, place, torch.arange(len(flat), device=match.device))
    return pairs[:count] // match.shape[1], pairs[:count] % match.shape[1]


class DistanceWeightedTriplet(ScoreLoss):
    """Hinge on one negative per positive pair, drawn evenly over distances. Cosines only.

    Sum over pairs of relu(margin + s_an - s_ap), both directions added (Wu et al. 2017, eq. 4-5,
    as HREM uses it). Weights: log w = (2-n) ln d - (n-3)/2 ln(1 - d^2/4) with d = sqrt(2 - 2s) not
    below ``floor``, n = ``dimension``; negatives at ``cutoff`` or farther are never drawn. An
    anchor without a negative that can be drawn is left out (``exhausted="drop"``); ``"zero"``
    repeats the authors' habit, where one such anchor makes its whole direction 0. ``report``
    counts them.
    """

    needs_cosine = True

    def __init__(
        self,
        margin: float = 0.2,
        cutoff: float = 1.7,
        floor: float = 0.5,
        dimension: int = 512,
        exhausted: str = "drop",
    ):
        super().__init__()
        if exhausted not in ("drop", "zero"):
            raise ConfigError(f"exhausted: '{exhausted}' is unknown; expected drop or zero")
        if not 0.0 < floor < cutoff:
            raise ConfigError(
                f"cutoff={cutoff}: expected more than floor={floor}, which must be > 0"
            )
        self.margin, self.cutoff, self.floor = margin, cutoff, floor
        self.dimension, self.exhausted = dimension, exhausted

    def forward(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        """The sum of both directions, a scalar."""
        with torch.autocast(scores.values.device.type, enabled=False):
            forth, forth_empty = self.direction(scores, draws)
            back, back_empty = self.direction(scores.reverse(), draws)
        self.report = {"exhausted_anchors": forth_empty + back_empty}
        return forth + back

    def sampling_weights(self, values: Tensor, match: Tensor) -> Tensor:
        """Probability of each candidate as the negative of each anchor: [N, M], no gradient.

        Rows sum to 1, or to 0 where no negative can be drawn.
        """
        values = values.detach()
        n = float(self.dimension)
        distance = (2.0 - 2.0 * values).sqrt().clamp(min=self.floor)  # nan for values > 1
        log_weight = (2.0 - n) * distance.log()
        log_weight = log_weight - (n - 3.0) / 2.0 * (1.0 - 0.25 * distance.square()).log()
        log_weight = log_weight.masked_fill(match | ~log_weight.isfinite(), 0.0)
        weight = (log_weight - log_weight.amax(dim=1, keepdim=True)).exp()
        weight = weight.masked_fill(match | ~(distance < self.cutoff), 0.0)
        return weight / (weight.sum(dim=1, keepdim=True) + 1e-20)

    def direction(self, scores: Scores, draws: Draws) -> tuple[Tensor, Tensor]:
        """The loss with the queries as anchors, and how many of them are exhausted."""
        values, match = scores.values.float(), scores.match
        weight = self.sampling_weights(values, match)
        anchor, positive = matching_pairs(match, scores.count_matches())
        negative = draws.categorical(weight[anchor])
        cost = F.relu(self.margin + values[anchor, negative] - values[anchor, positive])
        if scores.weight is not None:
            cost = cost * scores.weight[anchor]
        empty = (weight.sum(dim=1) == 0) & match.any(dim=1)
        if self.exhausted == "drop":
            cost = cost.masked_fill(empty[anchor], 0.0)
        else:
            cost = cost.masked_fill(empty.any(), 0.0)
        return cost.sum(), empty.sum()


class Triplet(ScoreLoss):
    """Hinge against the own match: relu(margin + s_ij - s_i,own), both directions added.

    ``negatives``: ``sum`` over all, only the ``hardest`` (VSE++, Faghri et al. 2018, eq. 5), or
    ``warmup``: the sum for ``warmup_epochs``, the hardest after. ``mask_repeats`` takes repeats of
    the query's image out of the negatives; without it only the own match is.
    """

    def __init__(
        self,
        margin: float = 0.2,
        negatives: str = "hardest",
        warmup_epochs: int = 1,
        mask_repeats: bool = True,
    ):
        super().__init__()
        if negatives not in ("hardest", "sum", "warmup"):
            raise ConfigError(
                f"negatives: '{negatives}' is unknown; expected hardest, sum or warmup"
            )
        self.margin, self.negatives = margin, negatives
        self.warmup_epochs, self.mask_repeats = warmup_epochs, mask_repeats

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
        masked = scores.match if self.mask_repeats else columns == own
        cost = cost.masked_fill(masked, 0.0)
        cost = cost.max(dim=1).values if hardest else cost.sum(dim=1)
        return (cost if scores.weight is None else cost * scores.weight).sum()
