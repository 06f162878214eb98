"""Where scores come from, a tile of whole rows at a time. N images, C captions, T rows a tile.

Ranks, protocols and hubness rows read these tables and know nothing of models: a table may hold
embeddings, a matrix, the mean of several tables, or the short lists of a second stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from itr.errors import DataError

Rows = slice | Tensor  # which queries: a range, or their numbers on the table's device
Index = slice | np.ndarray  # which images or captions make up a part of a table
# Scores in a tile: 8 MiB keep a CPU's product and cache content, 128 MiB keep a GPU busy.
TILE_CPU, TILE_GPU = 2**21, 2**25
DIRECTIONS = ("i2t", "t2i", "i2i", "t2t")  # query and candidates: image, text


class ScoreTable(ABC):
    """Scores of ``n_images`` images and ``n_captions`` captions in both directions, on ``device``.

    ``depth``: how many candidates of a query were ordered (None: all); the rest score -inf.
    ``within``: images are scored with images, too, and captions with captions.
    """

    n_images: int
    n_captions: int
    device: torch.device
    depth: int | None = None
    within: bool = False

    @abstractmethod
    def scores(self, direction: str, rows: Rows) -> Tensor:
        """[T, M] of the queries ``rows`` of ``direction`` (`DIRECTIONS`) with every candidate.

        Raises DataError for a direction that is not known, see ``within``.
        """

    @abstractmethod
    def part(self, images: Index, captions: Index) -> ScoreTable:
        """The table of some images and captions."""

    def way(self, direction: str) -> tuple[Callable[[Rows], Tensor], int, int]:
        """What scores ``direction``, how many queries it has and how many candidates."""
        counts = {"i": self.n_images, "t": self.n_captions}
        return partial(self.scores, direction), counts[direction[0]], counts[direction[-1]]

    @property
    def tile(self) -> int:
        """How many scores should exist at a time."""
        return TILE_GPU if self.device.type == "cuda" else TILE_CPU

    def height(self, candidates: int) -> int:
        """How many queries with so many ``candidates`` fit into a tile."""
        return max(1, self.tile // max(1, candidates))


class EmbeddingTable(ScoreTable):
    """Dot products of ``images`` [N, D] and ``texts`` [C, D], both on one device."""

    within = True

    def __init__(self, images: Tensor, texts: Tensor):
        self.images, self.texts = images, texts
        self.n_images, self.n_captions, self.device = len(images), len(texts), images.device

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """One product, in the precision of the embeddings."""
        sides = {"i": self.images, "t": self.texts}
        with torch.autocast(self.device.type, enabled=False):
            return sides[direction[0]][rows] @ sides[direction[-1]].t()

    def part(self, images: Index, captions: Index) -> EmbeddingTable:
        """Some of the embeddings."""
        return EmbeddingTable(_take(self.images, images), _take(self.texts, captions))


class MatrixTable(ScoreTable):
    """A matrix [N, C] of floats; a memory-mapped array is read in tiles."""

    def __init__(self, values: np.ndarray | Tensor):
        self.values = values
        self.n_images, self.n_captions = values.shape
        self.device = values.device if isinstance(values, Tensor) else torch.device("cpu")

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """Rows or columns of the matrix."""
        if direction in ("i2i", "t2t"):
            raise DataError(f"{direction}: the scores are of images with captions alone")
        values = self.values if direction == "i2t" else self.values.T
        if isinstance(values, Tensor):
            return values[rows].contiguous()
        chosen = values[rows.numpy() if isinstance(rows, Tensor) else rows]
        return torch.from_numpy(np.array(chosen, order="C"))

    def part(self, images: Index, captions: Index) -> MatrixTable:
        """Some rows and columns."""
        return MatrixTable(self.values[images][:, captions])


class MeanTable(ScoreTable):
    """The mean of the scores of several ``tables`` of the same images and captions."""

    def __init__(self, tables: Sequence[ScoreTable]):
        first = tables[0]
        self.tables = list(tables)
        self.n_images, self.n_captions = first.n_images, first.n_captions
        self.device, self.within = first.device, all(table.within for table in tables)

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """The mean of a tile of each."""
        total = self.tables[0].scores(direction, rows)
        for table in self.tables[1:]:
            total = total + table.scores(direction, rows)
        return total / len(self.tables)

    def part(self, images: Index, captions: Index) -> MeanTable:
        """The mean of the parts."""
        return MeanTable([table.part(images, captions) for table in self.tables])


def _take(values: Tensor, index: Index) -> Tensor:
    if isinstance(index, np.ndarray):
        return values[torch.from_numpy(index).to(values.device)]
    return values[index]
