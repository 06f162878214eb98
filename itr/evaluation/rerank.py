"""Two-stage retrieval: dot products pick k candidates a query, the model's own score orders them.

N images, C captions, Q queries, M candidates in all, k of them re-ranked, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr.errors import ConfigError, DataError
from itr.evaluation.metrics import RECALLS
from itr.evaluation.ranks import TIES, TILE_CPU, TILE_GPU, Ranks
from itr.models.base import Encoded, RetrievalModel
from itr.parallel import add_up, rank, world_size

Progress = Callable[[str, int, int], None]  # what, how many are done, of how many


@dataclass
class RerankConfig:
    """Second stage of models that have one; what lies outside the ``k`` best stays behind them."""

    enabled: bool | None = None  # None: where the model has a second stage
    k: int = 128  # candidates a query; all of them where there are fewer
    batch_size: int = 512  # pairs that are scored at once; changes no number


class Shortlist(NamedTuple):
    """The candidates of one direction that were re-ranked."""

    candidates: Tensor  # [Q, k] int64
    scores: Tensor  # [Q, k] float32


def check_rerank(config: RerankConfig, reranks: bool, model: str) -> None:
    """Raises ConfigError for numbers, or for a model, with which re-ranking makes no sense."""
    if config.enabled and not reranks:
        raise ConfigError(
            f"rerank.enabled=true: {model} scores by its embeddings alone; type rerank.enabled=null"
        )
    if config.k < max(RECALLS):
        raise ConfigError(
            f"rerank.k: {config.k}; expected at least {max(RECALLS)}, or R@{max(RECALLS)} would "
            "count candidates that nobody ordered"
        )
    if config.batch_size < 1:
        raise ConfigError(f"rerank.batch_size: {config.batch_size} must be at least 1")


def rerank(
    model: RetrievalModel,
    images: Encoded,
    texts: Encoded,
    config: RerankConfig,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> tuple[Shortlist, Shortlist]:
    """Re-ranked candidates of each image among the captions, and of each caption among the images;
    ranks share the pairs, and all get all scores.

    ``dtype`` is that of autocast (None: float32). Pairs are scored image by image, so that a model
    prepares each image once; where its score ignores the direction, a pair that both directions
    ask for is scored once. The model must be in eval mode, without gradients. Raises DataError if
    scores are not finite.
    """
    i2t = nearest_candidates(images.pooled, texts.pooled, config.k)
    t2i = nearest_candidates(texts.pooled, images.pooled, config.k)
    count = len(texts.pooled)
    # On the host once: which images a chunk needs is then known without asking the device.
    forward = (torch.arange(len(i2t))[:, None] * count + i2t.cpu()).flatten()
    backward = (t2i.cpu() * count + torch.arange(len(t2i))[:, None]).flatten()
    asked = {"i2t": forward, "t2i": backward}
    if model.symmetric_rerank:
        asked = {"both": torch.cat([forward, backward])}
    jobs = {direction: keys.unique(return_inverse=True) for direction, keys in asked.items()}
    total, done, found = sum(len(keys) for keys, _ in jobs.values()), 0, []
    for direction, (keys, place) in jobs.items():
        values = torch.zeros(len(keys), device=i2t.device)
        for number, chunk in enumerate(torch.arange(len(keys)).split(config.batch_size)):
            if number % world_size() == rank():
                part = slice(int(chunk[0]), int(chunk[-1]) + 1)
                values[part] = _score(model, images, texts, keys[part], direction, dtype)
            done += len(chunk)
            if progress is not None:
                progress("pairs", done, total)
        found.append(add_up(values)[place.to(i2t.device)])
    scores = torch.cat(found)
    if not torch.isfinite(scores).all():
        raise DataError(
            f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} re-ranked scores are not "
            "finite: the weights have diverged or the half precision overflowed; try precision=fp32"
        )
    both = scores.split([len(forward), len(backward)])
    return Shortlist(i2t, both[0].view_as(i2t)), Shortlist(t2i, both[1].view_as(t2i))


def _score(
    model: RetrievalModel,
    images: Encoded,
    texts: Encoded,
    keys: Tensor,
    direction: str,
    dtype: torch.dtype | None,
) -> Tensor:
    """Scores [P] of pairs ``keys`` [P] (image * C + caption, rising, on the host)."""
    device, count = texts.pooled.device, len(texts.pooled)
    rows, local = (keys // count).unique_consecutive(return_inverse=True)
    rows = rows.to(device)
    here = Encoded(
        images.pooled[rows],
        None if images.tokens is None else images.tokens[rows],
        None if images.mask is None else images.mask[rows],
    )
    pairs = torch.stack([local, keys % count], dim=1).to(device)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        return model.rerank(here, texts, pairs, direction).float()


def nearest_candidates(queries: Tensor, candidates: Tensor, k: int) -> Tensor:
    """[Q, min(k, M)] int64: by dot product, best first, in tiles of the score matrix."""
    tile = TILE_GPU if queries.is_cuda else TILE_CPU
    height, k = max(1, tile // len(candidates)), min(k, len(candidates))
    with torch.autocast(queries.device.type, enabled=False):
        parts = [(part @ candidates.t()).topk(k, dim=1).indices for part in queries.split(height)]
    return torch.cat(parts)


def rank_shortlists(
    i2t: Shortlist, t2i: Shortlist, text_to_image: Any, ties: str = "pessimistic"
) -> Ranks:
    """Ranks of the best match in both directions; ``text_to_image`` [C] and ``ties`` as for
    `rank_embeddings`. Candidates that were not re-ranked are equal, behind all those that were.

    Raises ConfigError for an unknown rule.
    """
    if ties not in TIES:
        raise ConfigError(f"ties: '{ties}' is unknown; expected one of {', '.join(TIES)}")
    device = i2t.candidates.device
    owner = torch.as_tensor(np.asarray(text_to_image), dtype=torch.int64).to(device)
    rows = torch.arange(len(i2t.candidates), device=device)[:, None]
    captions = torch.bincount(owner, minlength=len(rows))
    single = torch.ones_like(owner)
    return Ranks(
        i2t=_ranks(i2t.scores, owner[i2t.candidates] == rows, captions, len(owner), ties),
        t2i=_ranks(t2i.scores, t2i.candidates == owner[:, None], single, len(rows), ties),
    )


def _ranks(scores: Tensor, match: Tensor, matches: Tensor, count: int, ties: str) -> np.ndarray:
    """Ranks [Q] from ``scores`` [Q, k] of which ``match`` [Q, k] are matches; a query has
    ``matches`` [Q] of them among all ``count`` candidates."""
    best = scores.masked_fill(~match, -torch.inf).amax(dim=1, keepdim=True)
    better = 1 + ((scores > best) & ~match).sum(dim=1)
    behind = 1 + ((scores >= best) & ~match).sum(dim=1)
    # No match in the list: every candidate outside it ties with the best match.
    outside = best[:, 0] == -torch.inf
    behind = torch.where(outside, 1 + count - matches, behind)
    if ties == "optimistic":
        return better.cpu().numpy()
    if ties == "pessimistic":
        return behind.cpu().numpy()
    return ((better + behind).double() / 2).cpu().numpy()
