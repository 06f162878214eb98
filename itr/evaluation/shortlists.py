"""Shortlists: the candidates that re-ranking orders, as a score table.

Q queries, M candidates, k of them in the shortlist.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from itr.errors import DataError
from itr.evaluation.score_tables import TILE_CPU, TILE_GPU, Index, Rows, ScoreTable


class Shortlist(NamedTuple):
    """The re-ranked candidates of each query of one direction."""

    candidates: Tensor  # [Q, k] int64
    scores: Tensor  # [Q, k] float32


def nearest_candidates(queries: Tensor, candidates: Tensor, k: int) -> Tensor:
    """The ``k`` best candidates by dot product, [Q, min(k, M)] int64, best first; in tiles."""
    tile = TILE_GPU if queries.is_cuda else TILE_CPU
    height, k = max(1, tile // len(candidates)), min(k, len(candidates))
    with torch.autocast(queries.device.type, enabled=False):
        parts = [(part @ candidates.t()).topk(k, dim=1).indices for part in queries.split(height)]
    return torch.cat(parts)


class ShortlistTable(ScoreTable):
    """Re-ranked candidates as a score table; candidates that were not re-ranked score -inf.

    ``first`` is the first stage's table, which provides the scores within a modality.
    """

    def __init__(self, i2t: Shortlist, t2i: Shortlist, first: ScoreTable | None = None):
        self.lists, self.first = {"i2t": i2t, "t2i": t2i}, first
        self.n_images, self.n_captions = len(i2t.scores), len(t2i.scores)
        self.device = i2t.scores.device
        self.depth = max(i2t.scores.shape[1], t2i.scores.shape[1])
        self.within_modality = first is not None and first.within_modality

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """A dense tile of the shortlists; within a modality, the scores of the first stage."""
        if direction not in self.lists:
            if self.first is None:
                raise DataError(f"{direction}: shortlists have only image-text scores")
            return self.first.scores(direction, rows)
        n_candidates = self.n_captions if direction == "i2t" else self.n_images
        candidates, scores = (each[rows] for each in self.lists[direction])
        dense = scores.new_full((len(scores), n_candidates), -torch.inf)
        return dense.scatter_(1, candidates, scores)

    def subset(self, images: Index, captions: Index) -> ScoreTable:
        """Raises DataError: the k best candidates of a subset are not those of the whole split."""
        raise DataError("shortlists must be computed separately for each subset")
