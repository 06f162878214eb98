"""The interface between models and losses: a loss takes one `Scores` and nothing else.

N queries, M candidates (the batch, or the batch and a queue).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from itr.clock import Clock
from itr.draws import Draws


@dataclass
class Scores:
    """Similarities of N queries with M candidates, with targets and weights."""

    values: Tensor  # [N, M] unscaled similarities, float32
    match: Tensor  # [N, M] bool: positives (the query's pair, and repeats of its image)
    own: Tensor  # [N] int64: the column of the query's pair
    soft: Tensor | None = None  # [N, M] soft targets, rows sum to 1
    weight: Tensor | None = None  # [N] weight of each row
    scale: Tensor | None = None  # scalar: the model's factor on the similarities, 1/temperature
    bias: Tensor | None = None  # scalar: the model's own, which a sigmoid loss adds after scaling
    back: Scores | None = None  # the other direction; None: the transpose
    n_match: int | None = None  # number of True entries in `match`, on the host; None: unknown
    cosine: bool = True  # values are in [-1, 1]

    def reverse(self) -> Scores:
        """The other direction: ``back`` if given, else the transpose.

        Raises ValueError if there is no ``back`` and the matrix is not square.
        """
        if self.back is not None:
            return self.back
        if self.values.shape[0] != self.values.shape[1]:
            raise ValueError(f"scores of shape {tuple(self.values.shape)} are not square; set back")
        return Scores(
            values=self.values.t(),
            match=self.match.t(),
            own=self.own.argsort(),  # the inverse of a permutation
            soft=None if self.soft is None else self.soft.t(),
            weight=self.weight,
            scale=self.scale,
            bias=self.bias,
            n_match=self.n_match,
            cosine=self.cosine,
        )


class ScoreLoss(nn.Module):
    """Base class of losses over one `Scores`. Combines both directions as its paper does.

    ``report`` holds detached scalars of the last call, for logging. The class attributes decide
    which model slots a loss is compatible with.
    """

    needs_cosine = False  # defined for cosine similarities only
    uses_soft = False  # uses soft targets, if given
    uses_scale = False  # uses the model's temperature, if given
    learns_scale = False  # learns a temperature
    uses_bias = False  # uses the model's bias, if given, and then the model's temperature, too
    variants: ClassVar[tuple[str, ...]] = ()  # "key=value ...": further rows of `itr losses`

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, Tensor] = {}

    def forward(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        """The loss, a scalar."""
        raise NotImplementedError


def pair_scores(
    queries: Tensor, candidates: Tensor, ids: Tensor, positive_pairs: int | None = None
) -> Scores:
    """Square scores of B pairs: ``queries`` and ``candidates`` [B, D], image ``ids`` [B].

    Computed in float32 also under autocast, because half precision breaks samplers and margins.
    """
    with torch.autocast(queries.device.type, enabled=False):
        values = queries.float() @ candidates.float().t()
    return Scores(
        values=values,
        match=ids[:, None] == ids[None, :],
        own=torch.arange(len(ids), device=ids.device),
        n_match=positive_pairs,
    )
