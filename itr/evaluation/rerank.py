"""Re-ranking: dot products select k candidates per query, the model's second stage orders them.

N images, C captions, Q queries, M candidates, k of them re-ranked, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr.errors import ConfigError, DataError
from itr.evaluation.encode import Progress
from itr.evaluation.metrics import RECALLS
from itr.evaluation.retrieval_set import Subset
from itr.evaluation.score_tables import EmbeddingTable
from itr.evaluation.shortlists import Shortlist, ShortlistTable, nearest_candidates
from itr.models.base import Encoded, RetrievalModel
from itr.options import configured, option
from itr.parallel import all_reduce_sum, rank, stop_all_ranks, world_size

LENGTH_GROUPS = 8  # groups of captions of similar length


@dataclass
@configured("train.yaml", "rerank")
class RerankConfig:
    """Re-ranking, for models with a second stage. Candidates beyond the ``k`` best rank last."""

    enabled: bool | None = option()
    k: int = option()
    batch_size: int = option(at_least=1)


def check_rerank(config: RerankConfig, reranks: bool, model: str) -> None:
    """Raises ConfigError for invalid numbers, or if the model cannot re-rank but should."""
    if config.enabled and not reranks:
        raise ConfigError(
            f"rerank.enabled=true: {model} has no second stage (it scores by embeddings "
            "alone); pass rerank.enabled=null"
        )
    if config.k < max(RECALLS):
        raise ConfigError(
            f"rerank.k: {config.k}; expected at least {max(RECALLS)}, because R@{max(RECALLS)} "
            "needs that many ordered candidates"
        )


def rerank(
    model: RetrievalModel,
    images: Encoded,
    texts: Encoded,
    config: RerankConfig,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    first: EmbeddingTable | None = None,
) -> tuple[Shortlist, Shortlist]:
    """Re-rank the best captions of each image and the best images of each caption.

    The best are those of ``first``, which may be another model's embeddings of the same images and
    captions; None: those of ``images`` and ``texts``.
    The process ranks share the pairs, and each gets all scores. ``dtype`` is the autocast type
    (None: float32). Pairs are scored image by image, so that a model prepares each image once. If
    the model's score does not depend on the direction, a pair that occurs in both is scored once.
    If padding does not change the result, captions of similar length are batched together. The
    model must be in eval mode, without gradients. Raises DataError if scores are not finite.
    """
    first = first or EmbeddingTable(images.pooled, texts.pooled)
    i2t = nearest_candidates(first.images, first.texts, config.k)
    t2i = nearest_candidates(first.texts, first.images, config.k)
    count = len(texts.pooled)
    # Pair keys stay on the CPU: selecting the images of a chunk needs no device synchronization.
    forward = (torch.arange(len(i2t))[:, None] * count + i2t.cpu()).flatten()
    backward = (t2i.cpu() * count + torch.arange(len(t2i))[:, None]).flatten()
    keys_of = {"i2t": forward, "t2i": backward}
    if model.symmetric_rerank:
        keys_of = {"both": torch.cat([forward, backward])}
    unique = {direction: keys.unique(return_inverse=True) for direction, keys in keys_of.items()}
    counter = _PairCounter(progress, sum(len(keys) for keys, _ in unique.values()))
    scorer = _PairScorer(model, images, texts, config.batch_size, dtype)
    scores = torch.cat(
        [
            scorer.scores(keys, direction, counter)[inverse.to(i2t.device)]
            for direction, (keys, inverse) in unique.items()
        ]
    )
    if not torch.isfinite(scores).all():
        raise DataError(
            f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} re-ranked scores are not "
            "finite: the weights have diverged or half precision overflowed; pass precision=fp32"
        )
    of_images, of_captions = scores.split([len(forward), len(backward)])
    return Shortlist(i2t, of_images.view_as(i2t)), Shortlist(t2i, of_captions.view_as(t2i))


class _PairCounter:
    """Counts scored pairs and reports them to ``progress``, if any."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress("pairs", self.done, self.total)


class _PairScorer:
    """Scores pairs with the model's second stage; each process rank scores some blocks."""

    def __init__(
        self,
        model: RetrievalModel,
        images: Encoded,
        texts: Encoded,
        batch_size: int,
        dtype: torch.dtype | None,
    ):
        self.model, self.images, self.texts = model, images, texts
        self.batch_size, self.dtype = batch_size, dtype

    def scores(self, keys: Tensor, direction: str, counter: _PairCounter) -> Tensor:
        """Scores [P], on every process rank, of the sorted pairs ``keys`` [P]."""
        model, texts = self.model, self.texts
        count, device = len(texts.pooled), texts.pooled.device
        values, turn = torch.zeros(len(keys), device=device), 0
        trimmed = not model.view.padding_is_arithmetic
        with stop_all_ranks():
            for group, cut_texts in by_length(texts, keys % count, trimmed):
                images_of = keys[group] // count
                for block in pair_blocks(images_of, model.rerank_block, self.batch_size):
                    indices = group[block.pairs]
                    new = block.is_new.nonzero()[:, 0]  # on the CPU, like all indices
                    if turn % world_size() == rank():
                        scored = _score(
                            model, self.images, cut_texts, keys[indices], direction, self.dtype
                        )
                        values[indices[new].to(device)] = scored[new.to(scored.device)]
                    turn += 1
                    counter.add(len(new))
        return all_reduce_sum(values)


def by_length(texts: Encoded, text_of: Tensor, trimmed: bool) -> Iterator[tuple[Tensor, Encoded]]:
    """Group the pairs by the length of their captions ``text_of`` [P]: yields the indices of a
    group's pairs, and ``texts`` cut to the group's longest caption.

    With ``trimmed`` false (padding changes the result) there is one group with uncut texts.
    """
    if not trimmed or texts.mask is None or texts.tokens is None:
        yield torch.arange(len(text_of)), texts
        return
    lengths = texts.mask.sum(dim=1).cpu()
    last = [len(lengths) * n // LENGTH_GROUPS - 1 for n in range(1, LENGTH_GROUPS + 1)]
    bounds = lengths.sort().values[last]
    group = torch.bucketize(lengths, bounds.unique())[text_of]
    for index, longest in enumerate(bounds.unique().tolist()):
        chosen = (group == index).nonzero()[:, 0]
        if len(chosen):
            tokens, mask = texts.tokens[:, :longest], texts.mask[:, :longest]
            yield chosen, Encoded(texts.pooled, tokens, mask)


class PairBlock(NamedTuple):
    """Pairs that are scored together."""

    pairs: Tensor  # [B] their indices
    is_new: Tensor  # [B] bool: False if the pair repeats an earlier one to fill its block


def pair_blocks(image_of: Tensor, size: int, batch_size: int) -> Iterator[PairBlock]:
    """Split the pairs with images ``image_of`` [P] (ascending) into blocks of ``size`` pairs of one
    image, about ``batch_size`` pairs at a time. An image's last pair is repeated to fill its last
    block."""
    _, counts = image_of.unique_consecutive(return_counts=True)
    filled = (counts + size - 1) // size * size
    start = (counts.cumsum(0) - counts).repeat_interleave(filled)
    within = torch.arange(len(start)) - (filled.cumsum(0) - filled).repeat_interleave(filled)
    last = (counts - 1).repeat_interleave(filled)
    pairs, is_new = start + within.minimum(last), within <= last
    at_once = max(size, batch_size // size * size)
    for chunk in zip(pairs.split(at_once), is_new.split(at_once), strict=True):
        yield PairBlock(*chunk)


def _score(
    model: RetrievalModel,
    images: Encoded,
    texts: Encoded,
    keys: Tensor,
    direction: str,
    dtype: torch.dtype | None,
) -> Tensor:
    """Scores [P] of the pairs ``keys`` [P] (image * C + caption, images ascending, on the CPU)."""
    device, count = texts.pooled.device, len(texts.pooled)
    rows, local = (keys // count).unique_consecutive(return_inverse=True)
    rows = rows.to(device)
    selected = Encoded(
        images.pooled[rows],
        None if images.tokens is None else images.tokens[rows],
        None if images.mask is None else images.mask[rows],
    )
    pairs = torch.stack([local, keys % count], dim=1).to(device)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        return model.rerank(selected, texts, pairs, direction, model.rerank_block).float()


class SecondStage:
    """Re-ranks a subset of ``first``, the first stage's embeddings of the whole split.

    ``images`` and ``texts`` are those of ``model``. The last table is cached because protocols
    often rank the same subset.
    """

    def __init__(
        self,
        model: RetrievalModel,
        images: Encoded,
        texts: Encoded,
        config: RerankConfig,
        dtype: torch.dtype | None,
        progress: Progress | None,
        first: EmbeddingTable,
    ):
        self.model, self.encoded, self.config = model, (images, texts), config
        self.first = first
        self.dtype, self.progress = dtype, progress
        self.last: tuple[Subset, ShortlistTable] | None = None
        self.whole: ShortlistTable | None = None  # of all images with all captions

    def __call__(self, subset: Subset) -> ShortlistTable:
        """The re-ranked scores of ``subset``."""
        if self.last is not None and _same(self.last[0], subset):
            return self.last[1]
        images = _select(self.encoded[0], subset.images)
        texts = _select(self.encoded[1], subset.captions)
        first = self.first.subset(subset.images, subset.captions)
        lists = rerank(self.model, images, texts, self.config, self.dtype, self.progress, first)
        table = ShortlistTable(*lists, first)
        self.last = (subset, table)
        if (len(images.pooled), len(texts.pooled)) == tuple(len(e.pooled) for e in self.encoded):
            self.whole = table
        return table


def _same(a: Subset, b: Subset) -> bool:
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))


def _select(encoded: Encoded, rows: slice | np.ndarray) -> Encoded:
    index: Any = rows
    if isinstance(rows, np.ndarray):
        index = torch.from_numpy(rows).to(encoded.pooled.device)
    tokens, mask = encoded.tokens, encoded.mask
    return Encoded(
        encoded.pooled[index],
        None if tokens is None else tokens[index],
        None if mask is None else mask[index],
    )
