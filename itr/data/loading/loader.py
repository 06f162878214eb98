"""Training loader: shuffled batches of a split. B pairs.

Each batch is assembled in one piece. Its random choices are a pure function of (seed, epoch,
caption): workers hold no state, and any batch of any epoch can be assembled again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from itr.batch import Batch
from itr.data.images.pixels import BrokenImageError
from itr.data.layouts.shards.reader import require_enough_shards
from itr.data.loading.prefetch import prefetch, worker_threads
from itr.data.loading.second_text import SecondTexts
from itr.data.loading.shuffle import EpochPlan
from itr.data.loading.substitute import replace_broken, replace_broken_pairs
from itr.data.loading.train_fields import TrainCaptions, TrainImages
from itr.data.records import Split
from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer import Tokenizer
from itr.errors import ConfigError, DataError
from itr.view import View

log = logging.getLogger(__name__)


class ItemFields(Protocol):
    """What a task adds to a batch of captions."""

    def fields(self, captions: np.ndarray) -> dict[str, Any]:
        """Fields of a `Batch` of ``captions`` [B], which are indices in the split."""
        ...


@dataclass(frozen=True)
class TrainData:
    """What a training loader reads."""

    split: Split
    view: View
    tokens: TokenTable  # of the captions of `split`
    tokenizer: Tokenizer
    second: SecondTexts | None = None  # where the view requires a second text
    cached_regions: Tensor | None = None  # from `cache_regions`, on the device
    items: ItemFields | None = None  # what a task adds to the captions


@dataclass(frozen=True)
class LoaderOptions:
    """How a training loader makes its batches."""

    batch_size: int  # pairs of all ranks together
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0  # threads that assemble batches; 0: the caller's thread
    pin_memory: bool = False
    finish_on_device: bool = False  # leave normalization to `Batch.to`
    length_bucket_batches: int = 0  # group captions by length in windows of this size; 0: off


class TrainLoader:
    """Iterates over the training batches of a split; an incomplete last batch is dropped.

    Each rank receives its contiguous share of every batch, padded like the whole batch: the ranks
    together hold what a single process would. An epoch runs over captions or, for ``view.unit``
    image and pair, over images with one random caption each. Pairs whose image is in ``broken``, or
    turns out to be undecodable, are replaced.

    Raises ConfigError for a batch size that the ranks cannot share, DataError if the split does not
    fill one batch.
    """

    def __init__(self, data: TrainData, options: LoaderOptions, broken: Iterable[int] = ()):
        split, view, seed = data.split, data.view, options.seed
        self.split, self.view, self.tokenizer = split, view, data.tokenizer
        self.batch_size, self.seed = options.batch_size, seed
        self.num_workers, self.pin_memory = options.num_workers, options.pin_memory
        bucket = options.length_bucket_batches
        if bucket and view.padding_is_arithmetic:
            log.warning(
                "trainer.length_bucket_batches=%d: off, padding changes this model's results",
                bucket,
            )
            bucket = 0
        by_image = view.unit != "caption"
        lengths = data.tokens.lengths
        self.plan = EpochPlan(split, by_image, self.batch_size, seed, bucket, lengths)
        _check(split, options, self.plan.samples, "images" if by_image else "captions")
        share = self.batch_size // options.world_size
        self.share = slice(options.rank * share, (options.rank + 1) * share)
        self.images = TrainImages(split, view, seed, options.finish_on_device, data.cached_regions)
        self.captions = TrainCaptions(data.tokens, data.tokenizer, view, seed)
        self.second, self.items = data.second, data.items
        self.broken = set(broken)  # images that cannot be decoded

    @property
    def batches_per_epoch(self) -> int:
        """Number of complete batches."""
        return self.plan.batches_per_epoch

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from ``start_batch`` on; independent of ``num_workers``."""
        batches = list(self.plan.batches(epoch)[start_batch:])

        def plan_next() -> None:
            self.plan.plan_ahead(epoch + 1, worker_threads(self.num_workers))

        assemble = functools.partial(self._assemble, epoch)
        return prefetch(assemble, batches, self.num_workers, plan_next)

    def _assemble(self, epoch: int, captions: np.ndarray) -> Batch:
        """The batch of ``captions``; assembled again whenever an image turns out to be broken.

        Raises DataError once more images are broken than the split allows.
        """
        while True:
            try:
                return self._batch(epoch, captions)
            except BrokenImageError as error:
                self.broken.add(error.image)
                if len(self.broken) > min(self.split.broken_limit, self.split.n_images - 1):
                    raise
                log.warning("%s; replaced (broken so far: %d)", error, len(self.broken))

    def _batch(self, epoch: int, planned: np.ndarray) -> Batch:
        """This rank's share of the batch of captions ``planned`` [batch_size]."""
        replace, second_images = replace_broken, self.images.second
        if second_images is not None:
            replace = functools.partial(replace_broken_pairs, second_images)
        whole, replaced = replace(self.split, planned, self.share, self.broken)
        captions = whole[self.share]
        images = self.split.text_to_image[captions]
        second = {} if self.second is None else self.second.fields(self.seed, epoch, captions)
        items = {} if self.items is None else self.items.fields(captions)
        batch = Batch(
            image_id=torch.from_numpy(images),
            caption_id=torch.from_numpy(captions.copy()),
            positive_pairs=_count_positives(images),
            shared_pairs=_count_positives(self.split.text_to_image[planned]),
            replaced=tuple(replaced),
            **self.images.fields(epoch, whole, self.share),
            **self.captions.fields(epoch, whole, self.share),
            **second,
            **items,
        )
        return batch.pin_memory() if self.pin_memory else batch


def require_positive(batch_size: int) -> None:
    """Raises ConfigError for a batch size below 1."""
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: expected at least 1")


def _check(split: Split, options: LoaderOptions, samples: int, unit: str) -> None:
    batch_size, world_size = options.batch_size, options.world_size
    require_positive(batch_size)
    if batch_size % world_size:
        raise ConfigError(
            f"batch_size={batch_size}: must be divisible by the number of devices ({world_size}); "
            f"pass batch_size={-(-batch_size // world_size) * world_size}"
        )
    if batch_size > samples:
        raise DataError(
            f"{split.source}: batch_size={batch_size}, but an epoch of this split has only "
            f"{samples} {unit}; pass batch_size={samples} or less"
        )
    if split.shard_ids is not None:
        count = len(np.unique(split.shard_ids))
        require_enough_shards(count, world_size, options.num_workers, split.source)


def _count_positives(images: np.ndarray) -> int:
    """Number of True in ``images[:, None] == images`` [B, B]."""
    return int((np.unique(images, return_counts=True)[1] ** 2).sum())
