"""Computes retrieval ranks by counting.

N images, C captions, Q queries, M candidates, P matches, T queries per tile.

The rank of a query needs no sorting: it is one more than the number of candidates that score above
its best match. The score matrix is computed (or read) in tiles of whole rows, compared once, and
discarded. The score of a match is read from the tile that it is compared with: the same pair
computed by a product of another shape may differ in the last bit, and a caption would then outrank
itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.errors import ConfigError, DataError
from itr.evaluation.score_tables import DirectionScores, EmbeddingTable, MatrixTable, ScoreTable

TIE_BREAKS = ("pessimistic", "optimistic", "mean")


def check_tie_break(tie_break: str) -> None:
    """Raises ConfigError unless ``tie_break`` is one of `TIE_BREAKS`."""
    if tie_break not in TIE_BREAKS:
        raise ConfigError(
            f"tie_break: '{tie_break}' is unknown; expected one of {', '.join(TIE_BREAKS)}"
        )


@dataclass(frozen=True)
class Ranks:
    """Rank of each query's best match, counted from 1; int64, or float64 if tie_break count half.

    ``depth``: number of candidates per query that were ordered (None: all). A rank above ``depth``
    only says that the match is not among them.
    """

    i2t: np.ndarray  # [N] of each image among the captions
    t2i: np.ndarray  # [C] of each caption among the images
    depth: int | None = None

    def beyond_depth(self, direction: str) -> np.ndarray:
        """Mask of the queries of ``direction`` (i2t, t2i) whose exact rank is unknown because it
        exceeds ``depth``."""
        ranks: np.ndarray = getattr(self, direction)
        return np.zeros(len(ranks), bool) if self.depth is None else ranks > self.depth


@dataclass(frozen=True)
class Matches:
    """Pairs of queries and matching candidates, sorted by query."""

    rows: Tensor  # [P] int64
    columns: Tensor  # [P] int64
    first: np.ndarray  # [Q + 1] start of each query's matches

    @classmethod
    def of(
        cls, rows: np.ndarray, columns: np.ndarray, queries: int, device: torch.device | str
    ) -> Matches:
        """Build from sorted ``rows`` [P] and their ``columns`` [P], both int64."""
        first = np.searchsorted(rows, np.arange(queries + 1))
        return cls(torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device), first)


def rank_table(
    table: ScoreTable, text_to_image: Any, tie_break: str = "pessimistic", tile: int | None = None
) -> Ranks:
    """Rank the captions for each image of ``table``, and the images for each caption.

    ``text_to_image`` [C] holds the image of each caption, in any order. The rank of an image
    without a caption, and of a caption without an image (-1), is NaN. ``tie_break`` defines how
    non-matches with the same score as the best match count: against the query (``pessimistic``),
    for it (``optimistic``), or half (``mean``). Other matches
    of the query never count against it. At most ``tile`` scores exist at a time (None: a default
    for the device). Raises ConfigError for an unknown ``tie_break`` and DataError for an invalid
    ``text_to_image`` or NaN scores.
    """
    tile = tile or table.tile
    both = match_both_ways(text_to_image, table.n_images, table.n_captions, table.device)
    ranks = []
    with torch.inference_mode():
        for direction, matches in zip(("i2t", "t2i"), both, strict=True):
            scores = table.in_direction(direction)

            def rows(start: int, stop: int, scores: DirectionScores = scores) -> Tensor:
                return scores.of(slice(start, stop))

            found = count_ranks(rows, scores.n_candidates, matches, tie_break, tile)
            unmatched = np.diff(matches.first) == 0
            ranks.append(np.where(unmatched, np.nan, found) if unmatched.any() else found)
    return Ranks(ranks[0], ranks[1], table.depth)


def rank_embeddings(
    images: Tensor,
    texts: Tensor,
    text_to_image: Any,
    tie_break: str = "pessimistic",
    tile: int | None = None,
) -> Ranks:
    """`rank_table` on the dot products of ``images`` [N, D] and ``texts`` [C, D]."""
    return rank_table(EmbeddingTable(images, texts), text_to_image, tie_break, tile)


def rank_scores(
    scores: np.ndarray | Tensor, text_to_image: Any, tie_break: str = "pessimistic"
) -> Ranks:
    """`rank_table` on a matrix ``scores`` [N, C] of floats; it may be memory-mapped."""
    return rank_table(MatrixTable(scores), text_to_image, tie_break)


def check_text_to_image(text_to_image: Any, images: int, texts: int) -> np.ndarray:
    """Return ``text_to_image`` [C] as int64.

    Raises DataError unless it holds one image index (0 to ``images`` - 1, or -1 for none) for each
    of ``texts`` captions, and at least one caption has an image.
    """
    if isinstance(text_to_image, Tensor):
        text_to_image = text_to_image.cpu()
    owner = np.asarray(text_to_image, dtype=np.int64)
    if owner.shape != (texts,):
        raise DataError(
            f"text_to_image has shape {owner.shape}; expected one image index for each of the "
            f"{texts} captions"
        )
    if texts and not (-1 <= owner.min() and owner.max() < images):
        raise DataError(
            f"text_to_image has values from {owner.min()} to {owner.max()}; expected 0 to "
            f"{images - 1}, or -1 for a caption without an image"
        )
    if not texts or owner.max() < 0:
        raise DataError(f"none of the {texts} captions has an image; nothing can be ranked")
    return owner


def match_both_ways(
    text_to_image: Any, images: int, texts: int, device: torch.device | str
) -> tuple[Matches, Matches]:
    """The matching captions of each image, and the matching image of each caption.

    Raises as `check_text_to_image`.
    """
    owner = check_text_to_image(text_to_image, images, texts)
    order = np.argsort(owner, kind="stable")
    by_image, owned = order[owner[order] >= 0], np.flatnonzero(owner >= 0)
    return (
        Matches.of(owner[by_image], by_image, images, device),
        Matches.of(owned, owner[owned], texts, device),
    )


def count_ranks(
    scores_of: Callable[[int, int], Tensor],
    candidates: int,
    matches: Matches,
    tie_break: str,
    tile: int,
) -> np.ndarray:
    """Ranks [Q] in one direction; ``scores_of(a, b)`` returns the scores [b - a, M] of queries a
    to b.

    Every tile is compared once (twice for ``mean``). Raises as `rank_table`.
    """
    check_tie_break(tie_break)
    queries, height = len(matches.first) - 1, max(1, tile // candidates)
    # Results are allocated first: small allocations between the tiles would prevent memory reuse.
    kind, device = torch.float64 if tie_break == "mean" else torch.int64, matches.rows.device
    ranks = torch.empty(queries, dtype=kind, device=device)
    bad = torch.zeros(queries, dtype=torch.bool, device=device)
    for start in range(0, queries, height):
        stop = min(start + height, queries)
        scores = scores_of(start, stop)
        pairs = slice(int(matches.first[start]), int(matches.first[stop]))
        rows = matches.rows[pairs] - start
        ranks[start:stop] = _rank_rows(scores, rows, matches.columns[pairs], tie_break)
        bad[start:stop] = scores.amax(dim=1).isnan()  # a NaN anywhere in a row is its maximum
        del scores  # before the next tile is computed
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {queries} queries have NaN scores (first index: "
            f"{int(bad.int().argmax())}), so their rank is undefined: the model has diverged or "
            "its input is broken"
        )
    return ranks.cpu().numpy()


def _rank_rows(scores: Tensor, rows: Tensor, columns: Tensor, tie_break: str) -> Tensor:
    """Rank [T] of the best match in each row of ``scores`` [T, M]; matches are at (``rows``,
    ``columns``)."""
    own = scores[rows, columns]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, rows, own, "amax")
    if tie_break == "optimistic":
        return 1 + (scores > best[:, None]).sum(dim=1, dtype=torch.int32).long()
    # Matches that score the same as the best match, including itself: they do not count against it.
    mine = torch.zeros_like(best, dtype=torch.int64)
    mine = mine.scatter_add(0, rows, (own == best[rows]).long())
    against = 1 + (scores >= best[:, None]).sum(dim=1, dtype=torch.int32).long() - mine
    if tie_break == "pessimistic":
        return against
    favored = 1 + (scores > best[:, None]).sum(dim=1, dtype=torch.int32).long()
    return (favored + against).double() / 2
