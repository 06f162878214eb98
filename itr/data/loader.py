"""Splits to batches. B pairs, R regions, D region width, L token ids.

A batch is put together in one go, and what is random in it is a pure function of (seed, epoch,
caption): workers hold no state, and any batch of any epoch can be made again.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from itr.batch import Batch
from itr.data import chance
from itr.data.precomp import bad_row
from itr.data.records import Split
from itr.data.text import DELETE, MASK, RANDOM, Tokenizer, TokenTable, fates
from itr.errors import ConfigError, DataError
from itr.view import TextView, View


class TrainLoader:
    """Shuffled training batches; the last, incomplete one of an epoch is left out.

    ``batch_size`` counts pairs over all ``world`` ranks; a rank gets its contiguous share of each
    batch. An epoch runs over captions or, for ``view.unit`` image and pair, over images with one
    drawn caption each. Raises ConfigError, or DataError if the split fills no batch.
    """

    def __init__(
        self,
        split: Split,
        view: View,
        tokens: TokenTable,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ):
        self.split, self.view, self.seed = split, view, seed
        self.by_image = view.unit != "caption"
        self.samples = split.n_images if self.by_image else split.n_captions
        _positive(batch_size)
        if batch_size % world:
            raise ConfigError(
                f"batch_size={batch_size}: cannot be shared by {world} devices; type "
                f"batch_size={-(-batch_size // world) * world}"
            )
        if batch_size > self.samples:
            raise DataError(
                f"{split.source}: batch_size={batch_size}, but an epoch of this split has only "
                f"{self.samples} {'images' if self.by_image else 'captions'}; type "
                f"batch_size={self.samples} or less"
            )
        self.batch_size = batch_size
        self.rank, self.share = rank, batch_size // world
        self.workers, self.pin_memory = workers, pin_memory
        self.regions, self.texts = Regions(split), Texts(tokens, view.text)
        self.vocabulary, self.mask_id = tokenizer.vocabulary_size, tokenizer.mask_id

    @property
    def batches_per_epoch(self) -> int:
        """Number of (full) batches."""
        return self.samples // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The captions of ``epoch`` in their order, int64 [number of captions, or of images]."""
        draws = chance.uniform(self.seed, epoch, chance.ORDER, np.arange(self.samples))
        order = np.argsort(draws, kind="stable")
        if not self.by_image:
            return order
        draws = chance.uniform(self.seed, epoch, chance.CAPTION, order)
        chosen = (draws * self.split.captions_per_image[order]).astype(np.int64)
        return self.split.first_caption[order] + chosen

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from ``start_batch`` on: the same whatever ``workers`` is."""
        count = self.batches_per_epoch
        batches = self.order(epoch)[: count * self.batch_size].reshape(count, self.batch_size)
        mine = slice(self.rank * self.share, (self.rank + 1) * self.share)
        assemble = functools.partial(self._assemble, epoch)
        return _run(assemble, list(batches[start_batch:, mine]), self.workers)

    def _assemble(self, epoch: int, captions: np.ndarray) -> Batch:
        images = self.split.text_to_image[captions]
        keep = self.kept_regions(epoch, captions) if self.view.regions.drop > 0 else None
        ids, lengths = self.drawn_texts(epoch, captions)
        batch = Batch(
            image_id=torch.from_numpy(images),
            caption_id=torch.from_numpy(captions.copy()),
            positive_pairs=int((np.unique(images, return_counts=True)[1] ** 2).sum()),
            **self.regions.fetch(images, keep, self.view.regions.min_pad),
            **self.texts.pad(ids, lengths),
        )
        return batch.pin_memory() if self.pin_memory else batch

    def kept_regions(self, epoch: int, captions: np.ndarray) -> np.ndarray:
        """Which regions of each caption's image stay, bool [B, R].

        The authors' code may drop all of an image, whose mean is then NaN: here the one with the
        largest draw always stays.
        """
        count = np.arange(self.regions.array.shape[1])
        draws = chance.uniform(self.seed, epoch, chance.REGION, captions[:, None], count)
        keep = draws > self.view.regions.drop
        keep[np.arange(len(captions)), draws.argmax(axis=1)] = True
        return keep

    def drawn_texts(self, epoch: int, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of ``captions`` [B], augmented if the view says so, and their lengths [B]."""
        table, rule = self.texts.table, self.view.text.augment
        places, lengths = table.positions(captions)
        ids, words = table.flat[places], table.words[places]
        if rule is None:
            return ids, lengths
        caption = np.repeat(captions, lengths)
        # Pieces of a word ask for the same (caption, word), so they share its draw.
        draws = chance.uniform(self.seed, epoch, chance.WORD, caption, words)
        fate = fates(np.where(words < 0, -1, np.arange(len(words))), draws, rule)
        ids = np.where(fate == MASK, self.mask_id, ids)
        new = fate == RANDOM
        piece = (places - table.offsets[caption])[new]
        draws = chance.uniform(self.seed, epoch, chance.PIECE, caption[new], piece)
        ids[new] = draws * self.vocabulary
        stays = fate != DELETE
        kept = np.add.reduceat(stays, np.cumsum(lengths) - lengths, dtype=np.int64)
        return ids[stays], kept


def image_batches(split: Split, view: View, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Each image of ``split`` once, in record order, as ``view`` wants it for evaluation."""
    regions = Regions(split)

    def assemble(images: np.ndarray) -> Batch:
        fields = regions.fetch(images, None, view.regions_eval.min_pad)
        return Batch(image_id=torch.from_numpy(images.copy()), **fields)

    return _run(assemble, _slices(np.arange(split.n_images), batch_size), workers)


def caption_batches(
    split: Split, view: View, tokens: TokenTable, batch_size: int
) -> Iterator[Batch]:
    """Each caption of ``split`` once; ``caption_id`` says which.

    Longest first, so that a batch holds little padding; in record order where padding counts.
    """
    order = np.arange(split.n_captions)
    if not view.padding_is_arithmetic:
        order = np.argsort(-tokens.lengths, kind="stable")
    texts = Texts(tokens, view.text_eval)

    def assemble(captions: np.ndarray) -> Batch:
        places, lengths = tokens.positions(captions)
        return Batch(
            image_id=torch.from_numpy(split.text_to_image[captions]),
            caption_id=torch.from_numpy(captions.copy()),
            **texts.pad(tokens.flat[places], lengths),
        )

    return _run(assemble, _slices(order, batch_size), workers=0)


def _positive(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: expected at least 1")


def _slices(order: np.ndarray, size: int) -> list[np.ndarray]:
    _positive(size)
    return [order[first : first + size] for first in range(0, len(order), size)]


def _run(
    assemble: Callable[[np.ndarray], Batch], items: list[np.ndarray], workers: int
) -> Iterator[Batch]:
    """``assemble`` of each item, in order, by ``workers`` threads that run ahead.

    Threads, not processes: the work is one copy of memory outside the interpreter's lock, which a
    process would do twice (measured: 36 x 2048 regions come 7 times slower from two processes).
    """
    if workers < 1:
        yield from map(assemble, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        ahead: deque[Future[Batch]] = deque()
        for item in items:
            ahead.append(pool.submit(assemble, item))
            if len(ahead) > workers + 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Regions:
    """The regions of a split, by image number."""

    def __init__(self, split: Split):
        if split.regions is None:
            raise ConfigError(f"{split.source}: holds no regions, which the model's view asks for")
        self.array = split.regions
        self.rows = np.array([record.image for record in split.records], dtype=np.int64)
        self.source = split.source

    def fetch(
        self, images: np.ndarray, keep: np.ndarray | None = None, min_pad: int = 0
    ) -> dict[str, Any]:
        """The region fields of a `Batch`.

        Of ``images`` [B] only the regions in ``keep`` [B, R] are taken (None: all), moved to the
        front and zero-padded. Raises DataError, naming the row, for features that are not finite.
        """
        rows, (_, count, width) = self.rows[images], self.array.shape
        if keep is None:
            keep = np.ones((len(rows), count), dtype=bool)
        lengths = keep.sum(axis=1)
        mask = np.arange(max(int(lengths.max()), min_pad)) < lengths[:, None]
        flat = np.zeros(mask.shape, dtype=np.int64)
        flat[mask] = (rows[:, None] * count + np.arange(count))[keep]
        values = np.empty((*mask.shape, width), dtype=self.array.dtype)
        np.take(self.array.reshape(-1, width), flat, axis=0, out=values, mode="clip")
        values[~mask] = 0
        if values.dtype != np.float32:  # numpy's large arrays lie in huge pages, torch's do not
            half, values = values, np.empty(values.shape, np.float32)
            torch.from_numpy(values).copy_(torch.from_numpy(half))
        with np.errstate(all="ignore"):
            finite = np.isfinite(values.sum())
        if not finite:  # or the sum alone overflowed
            self._require_finite(rows)
        return {
            "regions": torch.from_numpy(values),
            "region_mask": torch.from_numpy(mask),
            "min_region_length": int(lengths.min()),
        }

    def _require_finite(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            values = np.asarray(self.array[row])
            if not np.isfinite(values).all():
                raise DataError(f"{self.source}: {bad_row(row, values)}")


@dataclass
class Texts:
    """Token ids of a split, padded as ``view`` asks; raises ConfigError where they do not fit."""

    table: TokenTable
    view: TextView

    def __post_init__(self) -> None:
        longest = int(self.table.lengths.max(initial=0))
        if self.view.pad_to is not None and longest > self.view.pad_to:
            raise ConfigError(
                f"pad_to={self.view.pad_to}: the longest caption has {longest} ids; set max_length "
                f"to {self.view.pad_to} or less, or pad_to to {longest} or more"
            )

    def pad(self, ids: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
        """The token fields of a `Batch` from captions one after the other: ``ids`` [sum of
        ``lengths`` [B]]."""
        width = self.view.pad_to or max(int(lengths.max()), self.view.min_pad)
        mask = np.arange(width) < lengths[:, None]
        tokens = np.zeros(mask.shape, dtype=np.int64)
        tokens[mask] = ids
        return {
            "tokens": torch.from_numpy(tokens),
            "token_mask": torch.from_numpy(mask),
            "min_token_length": int(lengths.min()),
        }
