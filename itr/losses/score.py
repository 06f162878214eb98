"""The contract between models and losses: a loss sees one `Scores` and nothing else.

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
    """Similarities of N queries with M candidates, and what is known about them."""

    values: Tensor  # [N, M] unscaled similarities, float32
    match: Tensor  # [N, M] bool: candidate belongs to the query (its own, and repeats of its image)
    own: Tensor  # [N] int64: the column of the row's own match
    soft: Tensor | None = None  # [N, M] soft targets, rows sum to 1
    weight: Tensor | None = None  # [N] weight of each row
    scale: Tensor | None = (
        None  # scalar: the model's own factor on the similarities (1/temperature)
    )
    back: Scores | None = None  # the other direction; None means the transpose
    n_match: int | None = None  # True entries of `match`, known on the host; None: not known
    cosine: bool = True  # values lie in [-1, 1]

    def reverse(self) -> Scores:
        """The other direction: ``back`` if there is one, else the transpose.

        Raises ValueError where there is no ``back`` and the matrix is not square.
        """
        if self.back is not None:
            return self.back
        if self.values.shape[0] != self.values.shape[1]:
            raise ValueError(f"scores {tuple(self.values.shape)} need `back`: not square")
        return Scores(
            values=self.values.t(),
            match=self.match.t(),
            own=self.own.argsort(),  # the inverse of a permutation
            soft=None if self.soft is None else self.soft.t(),
            weight=self.weight,
            scale=self.scale,
            n_match=self.n_match,
            cosine=self.cosine,
        )


class ScoreLoss(nn.Module):
    """A loss over one `Scores`. Combines the two directions as its paper does.

    ``report`` holds detached scalars of the last call that are for logging only.
    The other attributes let a pairing that makes no sense be refused at start-up.
    """

    needs_cosine = False  # it is defined on cosine similarities only
    uses_soft = False  # it reads soft targets where there are any
    uses_scale = False  # it reads the model's own temperature where there is one
    learns_scale = False  # it has a temperature of its own to learn
    variants: ClassVar[tuple[str, ...]] = ()  # "key=value ...": further rows of `itr losses`

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, Tensor] = {}

    def forward(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        """A scalar."""
        raise NotImplementedError


def pair_scores(
    queries: Tensor, candidates: Tensor, ids: Tensor, positive_pairs: int | None = None
) -> Scores:
    """Square scores of B pairs: ``queries`` and ``candidates`` [B, D], ``ids`` [B] image ids.

    Computed in float32 whatever the autocast state (half precision breaks samplers and margins).
    """
    with torch.autocast(queries.device.type, enabled=False):
        values = queries.float() @ candidates.float().t()
    return Scores(
        values=values,
        match=ids[:, None] == ids[None, :],
        own=torch.arange(len(ids), device=ids.device),
        n_match=positive_pairs,
    )
