"""Score tables: compute or read score matrices in tiles of whole rows.

Ranking, protocols and hubness corrections work on these tables and know nothing about models. A
table can be backed by embeddings, by a matrix, by the mean of several tables, or by re-ranked
shortlists. N images, C captions, T rows per tile, M candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr.errors import DataError

Rows = slice | Tensor  # queries: a range, or their indices on the table's device
Index = slice | np.ndarray  # images or captions of a subset
# Scores per tile: 8 MiB keep a CPU's product and cache content, 128 MiB keep a GPU busy.
TILE_CPU, TILE_GPU = 2**21, 2**25
DIRECTIONS = ("i2t", "t2i", "i2i", "t2t")  # query to candidates; i: image, t: text


class DirectionScores(NamedTuple):
    """The scores of one direction: ``of(rows)`` returns [T, M]."""

    of: Callable[[Rows], Tensor]
    n_queries: int
    n_candidates: int


class ScoreTable(ABC):
    """Scores of ``n_images`` images and ``n_captions`` captions in both directions, on ``device``.

    ``depth``: number of candidates per query that were ordered (None: all); the others score -inf.
    ``within_modality``: image-image and caption-caption scores are available as well.
    ``symmetric``: a pair has the same score in both directions, up to rounding.
    """

    n_images: int
    n_captions: int
    device: torch.device
    depth: int | None = None
    within_modality: bool = False
    symmetric: bool = False

    @abstractmethod
    def scores(self, direction: str, rows: Rows) -> Tensor:
        """Scores [T, M] of the queries ``rows`` with all candidates of ``direction``.

        Raises DataError for a direction that the table does not have (see ``within_modality``).
        """

    @abstractmethod
    def subset(self, images: Index, captions: Index) -> ScoreTable:
        """The table of some images and captions."""

    def in_direction(self, direction: str) -> DirectionScores:
        """The scores of one of `DIRECTIONS`, with the number of its queries and candidates."""
        counts = {"i": self.n_images, "t": self.n_captions}
        return DirectionScores(
            partial(self.scores, direction), counts[direction[0]], counts[direction[-1]]
        )

    @property
    def tile(self) -> int:
        """Number of scores to hold in memory at a time."""
        return TILE_GPU if self.device.type == "cuda" else TILE_CPU

    def tile_rows(self, n_candidates: int) -> int:
        """Number of queries with ``n_candidates`` each that fit into one tile."""
        return max(1, self.tile // max(1, n_candidates))


class EmbeddingTable(ScoreTable):
    """Dot products of ``images`` [N, D] and ``texts`` [C, D], both on one device."""

    within_modality = symmetric = True

    def __init__(self, images: Tensor, texts: Tensor):
        self.images, self.texts = images, texts
        self.n_images, self.n_captions, self.device = len(images), len(texts), images.device

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """One matrix product, in the precision of the embeddings."""
        embeddings = {"i": self.images, "t": self.texts}
        with torch.autocast(self.device.type, enabled=False):
            return embeddings[direction[0]][rows] @ embeddings[direction[-1]].t()

    def subset(self, images: Index, captions: Index) -> EmbeddingTable:
        """The table of some of the embeddings."""
        return EmbeddingTable(_take(self.images, images), _take(self.texts, captions))


class MatrixTable(ScoreTable):
    """A matrix [N, C] of floats; a memory-mapped array is read in tiles."""

    symmetric = True

    def __init__(self, values: np.ndarray | Tensor):
        self.values = values
        self.n_images, self.n_captions = values.shape
        self.device = values.device if isinstance(values, Tensor) else torch.device("cpu")

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """Rows or columns of the matrix."""
        if direction in ("i2i", "t2t"):
            raise DataError(f"{direction}: a score matrix has only image-text scores")
        values = self.values if direction == "i2t" else self.values.T
        if isinstance(values, Tensor):
            return values[rows].contiguous()
        selected = values[rows.numpy() if isinstance(rows, Tensor) else rows]
        return torch.from_numpy(np.array(selected, order="C"))

    def subset(self, images: Index, captions: Index) -> MatrixTable:
        """The table of some rows and columns."""
        part = MatrixTable(self.values[images][:, captions])
        part.depth = self.depth
        return part


class TwoWayTable(ScoreTable):
    """A matrix for each direction: ``i2t`` [N, C] and ``t2i`` [C, N]."""

    def __init__(self, i2t: np.ndarray | Tensor, t2i: np.ndarray | Tensor):
        self.ways = {"i2t": MatrixTable(i2t), "t2i": MatrixTable(t2i)}
        self.n_images, self.n_captions = i2t.shape
        self.device = self.ways["i2t"].device

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """Rows of the matrix of ``direction``."""
        if direction not in self.ways:
            raise DataError(f"{direction}: score matrices have only image-text scores")
        return self.ways[direction].scores("i2t", rows)

    def subset(self, images: Index, captions: Index) -> TwoWayTable:
        """The tables of some rows and columns."""
        i2t, t2i = self.ways["i2t"].values, self.ways["t2i"].values
        part = TwoWayTable(i2t[images][:, captions], t2i[captions][:, images])
        part.depth = self.depth
        return part


class MeanTable(ScoreTable):
    """The mean of the scores of several ``tables`` of the same images and captions."""

    def __init__(self, tables: Sequence[ScoreTable]):
        first = tables[0]
        self.tables = list(tables)
        self.n_images, self.n_captions = first.n_images, first.n_captions
        self.device = first.device
        self.within_modality = all(table.within_modality for table in tables)
        self.symmetric = all(table.symmetric for table in tables)

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """The mean of one tile of each table."""
        total = self.tables[0].scores(direction, rows)
        for table in self.tables[1:]:
            total = total + table.scores(direction, rows)
        return total / len(self.tables)

    def subset(self, images: Index, captions: Index) -> MeanTable:
        """The mean of the subsets of all tables."""
        return MeanTable([table.subset(images, captions) for table in self.tables])


def _take(values: Tensor, index: Index) -> Tensor:
    if isinstance(index, np.ndarray):
        return values[torch.from_numpy(index).to(values.device)]
    return values[index]
