"""Two-stage retrieval: dot products pick k candidates a query, the model's own score orders them.

N images, C captions, Q queries, M candidates in all, k of them re-ranked, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from itr.errors import ConfigError, DataError
from itr.evaluation.encode import Progress
from itr.evaluation.metrics import RECALLS
from itr.evaluation.score_tables import TILE_CPU, TILE_GPU, Index, Rows, ScoreTable
from itr.models.base import Encoded, RetrievalModel
from itr.parallel import add_up, left_together, rank, world_size

LENGTHS = 8  # groups of captions by length


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
    ask for is scored once; where padding is no arithmetic, captions of a length come together. The
    model must be in eval mode, without gradients. Raises DataError if scores are not finite.
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
    trimmed = not model.view.padding_is_arithmetic
    for direction, (keys, place) in jobs.items():
        values = torch.zeros(len(keys), device=i2t.device)
        turn = 0
        with left_together():
            for chosen, several in by_length(texts, keys % count, trimmed):
                for pairs in blocks(keys[chosen] // count, model.rerank_block, config.batch_size):
                    numbers = chosen[pairs.pairs]
                    kept = pairs.first.nonzero()[:, 0]  # on the host, as all that chooses
                    if turn % world_size() == rank():
                        part = _score(model, images, several, keys[numbers], direction, dtype)
                        values[numbers[kept].to(values.device)] = part[kept.to(part.device)]
                    turn += 1
                    done += len(kept)
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


def by_length(texts: Encoded, text_of: Tensor, trimmed: bool) -> Iterator[tuple[Tensor, Encoded]]:
    """Numbers of the pairs whose captions ``text_of`` [P] are about as long, with ``texts`` cut to
    the longest of them; all at once where padding counts (``trimmed`` false)."""
    if not trimmed or texts.mask is None or texts.tokens is None:
        yield torch.arange(len(text_of)), texts
        return
    lengths = texts.mask.sum(dim=1).cpu()
    bounds = lengths.sort().values[[len(lengths) * n // LENGTHS - 1 for n in range(1, LENGTHS + 1)]]
    group = torch.bucketize(lengths, bounds.unique())[text_of]
    for number, longest in enumerate(bounds.unique().tolist()):
        chosen = (group == number).nonzero()[:, 0]
        if len(chosen):
            tokens, mask = texts.tokens[:, :longest], texts.mask[:, :longest]
            yield chosen, Encoded(texts.pooled, tokens, mask)


class Block(NamedTuple):
    """Pairs that are scored at once."""

    pairs: Tensor  # [B] their numbers
    first: Tensor  # [B] bool: False where a pair only fills its block


def blocks(image_of: Tensor, size: int, batch_size: int) -> Iterator[Block]:
    """The pairs with images ``image_of`` [P] (rising), in blocks of ``size`` of the same image
    each, at most about ``batch_size`` at once; an image's last pair fills its last block."""
    _, counts = image_of.unique_consecutive(return_counts=True)
    filled = (counts + size - 1) // size * size
    start = (counts.cumsum(0) - counts).repeat_interleave(filled)
    within = torch.arange(len(start)) - (filled.cumsum(0) - filled).repeat_interleave(filled)
    last = (counts - 1).repeat_interleave(filled)
    pairs, first = start + within.minimum(last), within <= last
    at_once = max(size, batch_size // size * size)
    for chunk in zip(pairs.split(at_once), first.split(at_once), strict=True):
        yield Block(*chunk)


def _score(
    model: RetrievalModel,
    images: Encoded,
    texts: Encoded,
    keys: Tensor,
    direction: str,
    dtype: torch.dtype | None,
) -> Tensor:
    """Scores [P] of pairs ``keys`` [P] (image * C + caption, images rising, on the host)."""
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
        return model.rerank(here, texts, pairs, direction, model.rerank_block).float()


def nearest_candidates(queries: Tensor, candidates: Tensor, k: int) -> Tensor:
    """[Q, min(k, M)] int64: by dot product, best first, in tiles of the score matrix."""
    tile = TILE_GPU if queries.is_cuda else TILE_CPU
    height, k = max(1, tile // len(candidates)), min(k, len(candidates))
    with torch.autocast(queries.device.type, enabled=False):
        parts = [(part @ candidates.t()).topk(k, dim=1).indices for part in queries.split(height)]
    return torch.cat(parts)


class ShortlistTable(ScoreTable):
    """Re-ranked candidates as a table: whatever was not re-ranked scores -inf, behind all others.

    ``first`` is the table of the first stage, for scores within images and within captions.
    """

    def __init__(self, i2t: Shortlist, t2i: Shortlist, first: ScoreTable | None = None):
        self.lists, self.first = {"i2t": i2t, "t2i": t2i}, first
        self.n_images, self.n_captions = len(i2t.scores), len(t2i.scores)
        self.device = i2t.scores.device
        self.depth = max(i2t.scores.shape[1], t2i.scores.shape[1])
        self.within = first is not None and first.within

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """A dense tile of the lists; within images and within captions that of the first stage."""
        if direction not in self.lists:
            if self.first is None:
                raise DataError(f"{direction}: short lists are of images with captions alone")
            return self.first.scores(direction, rows)
        candidates = self.n_captions if direction == "i2t" else self.n_images
        chosen, scores = (part[rows] for part in self.lists[direction])
        dense = scores.new_full((len(scores), candidates), -torch.inf)
        return dense.scatter_(1, chosen, scores)

    def part(self, images: Index, captions: Index) -> ScoreTable:
        """Raises DataError: the k candidates of a part are not those of the whole."""
        raise DataError("short lists are made for each part anew")
