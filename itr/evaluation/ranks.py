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

TIES = ("pessimistic", "optimistic", "mean")
# Scores in a tile: 8 MiB keep a CPU's product and cache content, 128 MiB keep a GPU busy.
TILE_CPU, TILE_GPU = 2**21, 2**25


@dataclass(frozen=True)
class Ranks:
    """Rank of the best match, counted from 1; int64, or float64 where ties count half."""

    i2t: np.ndarray  # [N] of each image among the captions
    t2i: np.ndarray  # [C] of each caption among the images


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


def rank_embeddings(
    images: Tensor,
    texts: Tensor,
    text_to_image: Any,
    ties: str = "pessimistic",
    tile: int | None = None,
) -> Ranks:
    """Ranks under dot products of ``images`` [N, D] and ``texts`` [C, D], on their device.

    ``text_to_image`` [C] holds the image of each caption (any order, any number an image, at least
    one); ``ties`` says how equal scores of non-matches count: against the query (``pessimistic``),
    for it (``optimistic``) or half (``mean``). A query's own other matches never count against it.
    At most ``tile`` scores exist at a time. Raises ConfigError for an unknown rule, DataError for
    captions that do not fit the images and for scores that are NaN.
    """
    tile = tile or (TILE_GPU if images.is_cuda else TILE_CPU)
    forward, backward = match_both_ways(text_to_image, len(images), len(texts), images.device)
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        return Ranks(
            i2t=count_ranks(lambda a, b: images[a:b] @ texts.t(), len(texts), forward, ties, tile),
            t2i=count_ranks(
                lambda a, b: texts[a:b] @ images.t(), len(images), backward, ties, tile
            ),
        )


def rank_scores(
    scores: np.ndarray | Tensor, text_to_image: Any, ties: str = "pessimistic"
) -> Ranks:
    """Ranks under given ``scores`` [N, C] (floating point; a memory-mapped array is fine).

    The rest is as for `rank_embeddings`.
    """
    images, texts = scores.shape
    on = scores.device if isinstance(scores, Tensor) else torch.device("cpu")
    tile = TILE_GPU if on.type == "cuda" else TILE_CPU
    forward, backward = match_both_ways(text_to_image, images, texts, on)

    def part(values: np.ndarray | Tensor) -> Tensor:
        if isinstance(values, Tensor):
            return values.contiguous()
        return torch.from_numpy(np.array(values, order="C"))

    transposed = scores.T
    with torch.inference_mode():
        return Ranks(
            i2t=count_ranks(lambda a, b: part(scores[a:b]), texts, forward, ties, tile),
            t2i=count_ranks(lambda a, b: part(transposed[a:b]), images, backward, ties, tile),
        )


def match_both_ways(
    text_to_image: Any, images: int, texts: int, device: torch.device | str
) -> tuple[Matches, Matches]:
    """Matches of images among captions and of captions among images. Raises DataError."""
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

    Every tile is compared once (twice for ``mean``). Raises as `rank_embeddings`.
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
