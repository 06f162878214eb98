"""UTO: a log-sum-exp over negatives (USER, Zhang et al. 2024). N queries, M candidates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.clock import Clock
from itr.draws import Draws
from itr.losses.score import ScoreLoss, Scores
from itr.options import configured_arguments, option


class UTO(ScoreLoss):
    """Mean over queries of log(1 + sum_j exp(mu (s_ij - gamma))) / mu - log(1 + relu(s_i,own)).

    The first term is summed over both directions. The second counts once if both directions share
    their positives (square scores), and twice if they differ (a queue, ``Scores.back``). In the sum
    over j, the positive has score 0 (``positive="zero"``, USER's batch form) or is left out
    (``"drop"``, its queue form). Other captions of the query's image are negatives, as in the
    paper, unless ``mask_same_image``. Cosines only. ``report`` holds the fraction of positives with
    a score of at most 0, which receive no gradient.
    """

    needs_cosine = True
    variants = ("positive=drop", "mask_same_image=true")

    @configured_arguments("loss/uto.yaml", "loss.default")
    def __init__(
        self,
        mu: float = option(above=0),
        gamma: float = option(),
        positive: str = option(choices=("zero", "drop")),
        mask_same_image: bool = option(),
    ):
        super().__init__()
        self.mu, self.gamma = mu, gamma
        self.positive, self.mask_same_image = positive, mask_same_image

    def forward(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        """The loss, a scalar; at least -log 2 per counted positive term."""
        with torch.autocast(scores.values.device.type, enabled=False):
            back = scores.reverse()
            positive = _own(scores)
            cost = self._negatives(scores) + self._negatives(back) - _reward(scores, positive)
            if scores.back is not None:
                cost = cost - _reward(back, _own(back))
        self.report = {"dead_positives": (positive.detach() <= 0).float().mean()}
        return cost

    def _negatives(self, scores: Scores) -> Tensor:
        values, own = scores.values.float(), scores.own[:, None]
        if self.mask_same_image:
            values = values.masked_fill(scores.match, -torch.inf)
        values = values.scatter(1, own, 0.0 if self.positive == "zero" else -torch.inf)
        with_one = F.pad(self.mu * (values - self.gamma), (1, 0))  # exp(0) = 1
        return _mean(scores, with_one.logsumexp(dim=1) / self.mu)


def _own(scores: Scores) -> Tensor:
    return scores.values.float().gather(1, scores.own[:, None]).squeeze(1)


def _reward(scores: Scores, positive: Tensor) -> Tensor:
    return _mean(scores, F.relu(positive).log1p())


def _mean(scores: Scores, rows: Tensor) -> Tensor:
    return (rows if scores.weight is None else rows * scores.weight).mean()
