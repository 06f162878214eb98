"""Order of the samples in an epoch: a pure function of seed and epoch. S samples."""

from __future__ import annotations

from concurrent.futures import Executor, Future

import numpy as np

from itr.data import counter_rng
from itr.data.records import Split

WINDOW = 64  # shards whose samples are mixed with each other


def shuffled(seed: int, epoch: int, samples: int, shards: np.ndarray | None = None) -> np.ndarray:
    """The samples 0 .. S - 1 in the order of ``epoch``, int64 [S].

    ``shards`` [S] is the shard of each sample. Shards are shuffled, and samples are shuffled within
    windows of `WINDOW` shards, so that the disk reads a few large files at a time instead of
    seeking in all of them. With up to `WINDOW` shards this is a full shuffle.
    """
    draws = counter_rng.uniform(seed, epoch, counter_rng.ORDER, np.arange(samples))
    if shards is None or (count := int(shards.max(initial=0)) + 1) <= WINDOW:
        return np.argsort(draws, kind="stable")
    # Position 1: draws that differ from those of the samples.
    ranks = np.argsort(counter_rng.uniform(seed, epoch, counter_rng.ORDER, np.arange(count), 1))
    window = np.empty(count, np.int64)
    window[ranks] = np.arange(count) // WINDOW
    return np.lexsort((draws, window[shards]))


def bucketed(
    seed: int, epoch: int, order: np.ndarray, lengths: np.ndarray, batch_size: int, bucket: int
) -> np.ndarray:
    """``order``, with captions of similar length grouped within windows of ``bucket`` batches.

    ``lengths`` are those of the captions in ``order``. Within a batch the shuffled order is kept,
    and the batches of a window are shuffled: neither the rank nor the step of a caption depends on
    its length.
    """
    out = []
    for first in range(0, len(order), bucket * batch_size):
        window = slice(first, first + bucket * batch_size)
        by_length = np.argsort(lengths[window], kind="stable")
        batches = np.sort(by_length.reshape(-1, batch_size), axis=1)
        positions = first + np.arange(len(batches)) * batch_size
        draws = counter_rng.uniform(seed, epoch, counter_rng.BUCKET, positions)
        out.append(order[window][batches[np.argsort(draws)]].ravel())
    return np.concatenate(out)


class EpochPlan:
    """Which captions form the batches of each epoch of ``split``.

    An epoch runs over captions or, with ``by_image``, over images with one random caption each. An
    incomplete last batch is dropped. ``lengths`` of all captions are needed where ``bucket`` > 0.
    """

    def __init__(
        self,
        split: Split,
        by_image: bool,
        batch_size: int,
        seed: int,
        bucket: int,
        lengths: np.ndarray,
    ):
        self.split, self.by_image = split, by_image
        self.batch_size, self.seed = batch_size, seed
        self.bucket, self.lengths = bucket, lengths
        self.samples = split.n_images if by_image else split.n_captions
        self.shards = split.shard_ids  # of each image
        if self.shards is not None and not by_image:
            self.shards = self.shards[split.text_to_image]
        self._planned: dict[int, Future[np.ndarray]] = {}  # the next epoch, planned in advance

    @property
    def batches_per_epoch(self) -> int:
        """Number of complete batches."""
        return self.samples // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The captions of ``epoch`` in shuffled order, int64 [captions, or images]."""
        order = shuffled(self.seed, epoch, self.samples, self.shards)
        if not self.by_image:
            return order
        draws = counter_rng.uniform(self.seed, epoch, counter_rng.CAPTION, order)
        chosen = (draws * self.split.captions_per_image[order]).astype(np.int64)
        return self.split.first_caption[order] + chosen

    def batches(self, epoch: int) -> np.ndarray:
        """The captions of each batch of ``epoch``, int64 [batches, batch_size]."""
        planned = self._planned.pop(epoch, None)
        return self._make(epoch) if planned is None else planned.result()

    def plan_ahead(self, epoch: int, executor: Executor) -> None:
        """Plan ``epoch`` in the background: millions of samples take seconds."""
        self._planned = {epoch: executor.submit(self._make, epoch)}

    def _make(self, epoch: int) -> np.ndarray:
        count, size = self.batches_per_epoch, self.batch_size
        order = self.order(epoch)[: count * size]
        if self.bucket:
            lengths = self.lengths[order]
            order = bucketed(self.seed, epoch, order, lengths, size, self.bucket)
        return order.reshape(count, size)
