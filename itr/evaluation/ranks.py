"""Ranks by counting. N images, C captions, Q queries, M candidates, P matches, T queries a tile.

A query's rank needs no sorting: it is one more than the number of candidates that beat its best
match. The score matrix is therefore made (or read) in tiles of whole rows, compared once, and
dropped. A match's score is read from the tile it is compared with: the same pair computed by a
product of another shape may differ in the last bit, and a caption would then outrank itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.errors import ConfigError, DataError
from itr.evaluation.score_tables import EmbeddingTable, MatrixTable, Rows, ScoreTable

TIES = ("pessimistic", "optimistic", "mean")


@dataclass(frozen=True)
class Ranks:
    """Rank of the best match, counted from 1; int64, or float64 where ties count half.

    ``depth``: how many candidates of a query were ordered (None: all). A rank above it only says
    that the match lies behind them.
    """

    i2t: np.ndarray  # [N] of each image among the captions
    t2i: np.ndarray  # [C] of each caption among the images
    depth: int | None = None

    def beyond(self, way: str) -> np.ndarray:
        """Which ranks of ``way`` (i2t, t2i) are no numbers: the match lies behind ``depth``."""
        ranks: np.ndarray = getattr(self, way)
        return np.zeros(len(ranks), bool) if self.depth is None else ranks > self.depth


@dataclass(frozen=True)
class Matches:
    """Which candidates belong to which query, sorted by query."""

    rows: Tensor  # [P] int64
    columns: Tensor  # [P] int64
    first: np.ndarray  # [Q + 1] where the matches of each query begin

    @classmethod
    def of(
        cls, rows: np.ndarray, columns: np.ndarray, queries: int, device: torch.device | str
    ) -> Matches:
        """Matches from sorted ``rows`` [P] and their ``columns`` [P], int64."""
        first = np.searchsorted(rows, np.arange(queries + 1))
        return cls(torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device), first)


def rank_table(
    table: ScoreTable, text_to_image: Any, ties: str = "pessimistic", tile: int | None = None
) -> Ranks:
    """Ranks of the images and captions of ``table`` among each other.

    ``text_to_image`` [C] holds the image of each caption (any order, any number an image, at least
    one); ``ties`` says how equal scores of non-matches count: against the query (``pessimistic``),
    for it (``optimistic``) or half (``mean``). A query's own other matches never count against it.
    At most ``tile`` scores exist at a time (None: what suits the device). Raises ConfigError for an
    unknown rule, DataError for captions that do not fit the images and for scores that are NaN.
    """
    tile = tile or table.tile
    both = match_both_ways(text_to_image, table.n_images, table.n_captions, table.device)
    found = []
    with torch.inference_mode():
        for direction, matches in zip(("i2t", "t2i"), both, strict=True):
            scores, _, candidates = table.way(direction)

            def rows(start: int, stop: int, of: Callable[[Rows], Tensor] = scores) -> Tensor:
                return of(slice(start, stop))

            found.append(count_ranks(rows, candidates, matches, ties, tile))
    return Ranks(found[0], found[1], table.depth)


def rank_embeddings(
    images: Tensor,
    texts: Tensor,
    text_to_image: Any,
    ties: str = "pessimistic",
    tile: int | None = None,
) -> Ranks:
    """`rank_table` of the dot products of ``images`` [N, D] and ``texts`` [C, D]."""
    return rank_table(EmbeddingTable(images, texts), text_to_image, ties, tile)


def rank_scores(
    scores: np.ndarray | Tensor, text_to_image: Any, ties: str = "pessimistic"
) -> Ranks:
    """`rank_table` of given ``scores`` [N, C] (floats; a memory-mapped array is fine)."""
    return rank_table(MatrixTable(scores), text_to_image, ties)


def check_owner(text_to_image: Any, images: int, texts: int) -> np.ndarray:
    """``text_to_image`` [C] as int64. Raises DataError unless it has one image number (0 to
    ``images`` - 1) for each of ``texts`` captions, and every image has a caption."""
    if isinstance(text_to_image, Tensor):
        text_to_image = text_to_image.cpu()
    owner = np.asarray(text_to_image, dtype=np.int64)
    if owner.shape != (texts,):
        raise DataError(
            f"text_to_image has shape {owner.shape}; expected one image number for each of the "
            f"{texts} captions"
        )
    if texts and not (0 <= owner.min() and owner.max() < images):
        raise DataError(
            f"text_to_image holds {owner.min()} to {owner.max()}; expected 0 to {images - 1}"
        )
    without = np.flatnonzero(np.bincount(owner, minlength=images) == 0)
    if not texts or len(without):
        raise DataError(
            f"{len(without)} of {images} images have no caption (first numbers: "
            f"{without[:5].tolist()}); a rank needs at least one each: leave these images out"
        )
    return owner


def match_both_ways(
    text_to_image: Any, images: int, texts: int, device: torch.device | str
) -> tuple[Matches, Matches]:
    """Matches of images among captions and of captions among images. Raises as `check_owner`."""
    owner = check_owner(text_to_image, images, texts)
    by_image = np.argsort(owner, kind="stable")
    return (
        Matches.of(owner[by_image], by_image, images, device),
        Matches.of(np.arange(texts), owner, texts, device),
    )


def count_ranks(
    scores_of: Callable[[int, int], Tensor],
    candidates: int,
    matches: Matches,
    ties: str,
    tile: int,
) -> np.ndarray:
    """Ranks [Q] in one direction; ``scores_of(a, b)`` gives those [b - a, M] of a to b.

    Every tile is compared once (twice for ``mean``). Raises as `rank_table`.
    """
    if ties not in TIES:
        raise ConfigError(f"ties: '{ties}' is unknown; expected one of {', '.join(TIES)}")
    queries, height = len(matches.first) - 1, max(1, tile // candidates)
    # Results are set aside first: small pieces among the tiles would keep their memory from reuse.
    kind, device = torch.float64 if ties == "mean" else torch.int64, matches.rows.device
    ranks = torch.empty(queries, dtype=kind, device=device)
    bad = torch.zeros(queries, dtype=torch.bool, device=device)
    for start in range(0, queries, height):
        stop = min(start + height, queries)
        scores = scores_of(start, stop)
        chosen = slice(int(matches.first[start]), int(matches.first[stop]))
        rows = matches.rows[chosen] - start
        ranks[start:stop] = _rank_rows(scores, rows, matches.columns[chosen], ties)
        bad[start:stop] = scores.amax(dim=1).isnan()  # a NaN anywhere in a row is its maximum
        del scores  # before the next tile is made
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {queries} queries have scores that are NaN (the first is number "
            f"{int(bad.int().argmax())}); no rank is defined for them: the model has diverged or "
            "its input is broken"
        )
    return ranks.cpu().numpy()


def _rank_rows(scores: Tensor, rows: Tensor, columns: Tensor, ties: str) -> Tensor:
    """Ranks [T] within ``scores`` [T, M] of the best of the matches at (``rows``, ``columns``)."""
    own = scores[rows, columns]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, rows, own, "amax")
    if ties == "optimistic":
        return 1 + (scores > best[:, None]).sum(dim=1, dtype=torch.int32).long()
    # No match scores above the best one, so those counted here equal it: itself and its own ties.
    mine = torch.zeros_like(best, dtype=torch.int64)
    mine = mine.scatter_add(0, rows, (own == best[rows]).long())
    against = 1 + (scores >= best[:, None]).sum(dim=1, dtype=torch.int32).long() - mine
    if ties == "pessimistic":
        return against
    favoured = 1 + (scores > best[:, None]).sum(dim=1, dtype=torch.int32).long()
    return (favoured + against).double() / 2
