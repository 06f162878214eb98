"""Splits to batches. B pairs, R regions, D region width, L token ids.

A batch is put together in one go, and what is random in it is a pure function of (seed, epoch,
caption): workers hold no state, and any batch of any epoch can be made again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.batch import Batch
from itr.data import counter_rng
from itr.data.images.pixels import BrokenPicture, Pixels
from itr.data.images.regions import Regions
from itr.data.layouts.shards.reader import require_enough_shards
from itr.data.loading.prefetch import run_ahead, threads
from itr.data.loading.second_text import SecondTexts
from itr.data.loading.shuffle import bucketed, shuffled
from itr.data.loading.substitute import without_broken
from itr.data.records import Split
from itr.data.text.open import DELETE, MASK, RANDOM, Tokenizer, TokenTable, fates
from itr.data.text.token_table import Texts
from itr.errors import ConfigError, DataError
from itr.parallel import rank as own_rank
from itr.parallel import world_size
from itr.view import View

log = logging.getLogger(__name__)


class TrainLoader:
    """Shuffled training batches; the last, incomplete one of an epoch is left out.

    ``batch_size`` counts pairs over all ``world`` ranks; a rank gets its contiguous share of each
    batch, padded as the whole batch is, so that the ranks together hold what one would. An epoch
    runs over captions or, for ``view.unit`` image and pair, over images with one drawn caption
    each. ``late`` leaves to `Batch.to` what can be done there; ``resident`` is the region array on
    the device; ``bucket`` (0: off) puts captions of like length together inside windows of as many
    batches; ``broken`` are images known to be unusable. Raises ConfigError, or DataError if the
    split fills no batch.
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
        second: SecondTexts | None = None,
        late: bool = False,
        resident: Tensor | None = None,
        bucket: int = 0,
        broken: Iterable[int] = (),
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
        self.shards = split.shard_ids  # of each image
        if self.shards is not None and not self.by_image:
            self.shards = self.shards[split.text_to_image]
        if split.shard_ids is not None:
            require_enough_shards(len(np.unique(split.shard_ids)), world, workers, split.source)
        self.rank, self.share = rank, batch_size // world
        self.workers, self.pin_memory = workers, pin_memory
        self.pixels = Pixels(split, view.pixels, late) if view.kind == "pixels" else None
        self.regions = Regions(split, resident) if view.kind == "regions" else None
        self.broken = set(broken)  # images whose pictures could not be decoded
        if bucket and view.padding_is_arithmetic:
            log.warning(
                "trainer.length_bucket_batches=%d: off, the model's padding is arithmetic", bucket
            )
            bucket = 0
        self.bucket = bucket
        self._planned: dict[int, Future[np.ndarray]] = {}  # the next epoch's, begun early
        self.texts = Texts(tokens, view.text)
        self.second = second
        self.second_texts: Texts | None = None
        if second is not None:
            self.second_texts = Texts(second.table, view.second_text or view.text)
        self.tokenizer = tokenizer
        self.vocabulary, self.mask_id = tokenizer.vocabulary_size, tokenizer.mask_id
        if view.text.augment is not None and self.mask_id is None:
            raise ConfigError(
                f"tokenizer {view.tokenizer}: has no mask token, which the caption augmentation "
                "needs; choose a BERT's, or switch the augmentation off"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Number of (full) batches."""
        return self.samples // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The captions of ``epoch`` in their order, int64 [number of captions, or of images]."""
        order = shuffled(self.seed, epoch, self.samples, self.shards)
        if not self.by_image:
            return order
        draws = counter_rng.uniform(self.seed, epoch, counter_rng.CAPTION, order)
        chosen = (draws * self.split.captions_per_image[order]).astype(np.int64)
        return self.split.first_caption[order] + chosen

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from ``start_batch`` on: the same whatever ``workers`` is."""
        begun = self._planned.pop(epoch, None)
        batches = self._plan(epoch) if begun is None else begun.result()

        def plan_next() -> None:  # millions of samples take seconds
            self._planned = {epoch + 1: threads(self.workers).submit(self._plan, epoch + 1)}

        assemble = functools.partial(self._assemble, epoch)
        return run_ahead(assemble, list(batches[start_batch:]), self.workers, plan_next)

    def _plan(self, epoch: int) -> np.ndarray:
        """The captions of each batch of ``epoch``, int64 [batches, batch_size]."""
        count, size = self.batches_per_epoch, self.batch_size
        order = self.order(epoch)[: count * size]
        if self.bucket:
            lengths = self.texts.table.lengths[order]
            order = bucketed(self.seed, epoch, order, lengths, size, self.bucket)
        return order.reshape(count, size)

    def _assemble(self, epoch: int, drawn: np.ndarray) -> Batch:
        """A batch of the captions ``drawn``; a pair whose picture is broken gives way to another.

        Raises DataError once more pictures are broken than the split says may be.
        """
        while True:
            try:
                return self._batch(epoch, drawn)
            except BrokenPicture as error:
                self.broken.add(error.number)
                if len(self.broken) > min(self.split.broken_limit, self.split.n_images - 1):
                    raise
                log.warning("%s; left out (broken so far: %d)", error, len(self.broken))

    def _batch(self, epoch: int, drawn: np.ndarray) -> Batch:
        """This rank's share of the batch of captions ``drawn`` [batch_size]."""
        first = self.rank * self.share
        mine = slice(first, first + self.share)
        whole, gone = without_broken(self.split, drawn, mine, self.broken)
        captions = whole[mine]
        images = self.split.text_to_image[captions]
        ids, lengths = self.drawn_texts(epoch, whole)
        before = int(lengths[:first].sum())
        own_ids = ids[before : before + int(lengths[mine].sum())]
        batch = Batch(
            image_id=torch.from_numpy(images),
            caption_id=torch.from_numpy(captions.copy()),
            positive_pairs=_repeats(images),
            shared_pairs=_repeats(self.split.text_to_image[drawn]),
            replaced=tuple(gone),
            **self.image_fields(epoch, whole, images, mine),
            **self.texts.pad(own_ids, lengths[mine], int(lengths.max())),
            **self.second_fields(epoch, captions),
        )
        return batch.pin_memory() if self.pin_memory else batch

    def image_fields(
        self,
        epoch: int,
        captions: np.ndarray,
        images: np.ndarray,
        mine: slice = slice(None),
    ) -> dict[str, Any]:
        """The image side of a `Batch`: ``images`` [B] as they are shown with those of the whole
        batch's ``captions`` that are ``mine`` [B]."""
        if self.pixels is not None:
            uniforms = self.pixels.drawn(self.seed, epoch, captions[mine])
            return self.pixels.fields(images, uniforms)
        assert self.regions is not None
        if self.view.regions.drop == 0:
            return self.regions.fetch(images, None, self.view.regions.min_pad)
        keep = self.kept_regions(epoch, captions)
        width = max(int(keep.sum(axis=1).max()), self.view.regions.min_pad)
        return self.regions.fetch(images, keep[mine], width)

    def second_fields(self, epoch: int, captions: np.ndarray) -> dict[str, Any]:
        """The second text of a `Batch`: what goes with ``captions`` [B]; nothing if none is."""
        if self.second is None or self.second_texts is None:
            return {}
        rows = self.second.rows(self.seed, epoch, captions)
        places, lengths = self.second.table.positions(rows)
        fields = self.second_texts.pad(self.second.table.flat[places], lengths)
        return {"second_tokens": fields["tokens"], "second_mask": fields["token_mask"]}

    def kept_regions(self, epoch: int, captions: np.ndarray) -> np.ndarray:
        """Which regions of each caption's image stay, bool [B, R].

        The authors' code may drop all of an image, whose mean is then NaN: here the one with the
        largest draw always stays.
        """
        assert self.regions is not None
        count = np.arange(self.regions.array.shape[1])
        draws = counter_rng.uniform(self.seed, epoch, counter_rng.REGION, captions[:, None], count)
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
        draws = counter_rng.uniform(self.seed, epoch, counter_rng.WORD, caption, words)
        fate = fates(np.where(words < 0, -1, np.arange(len(words))), draws, rule)
        assert self.mask_id is not None
        ids = np.where(fate == MASK, self.mask_id, ids)
        new = fate == RANDOM
        piece = (places - table.offsets[caption])[new]
        draws = counter_rng.uniform(self.seed, epoch, counter_rng.PIECE, caption[new], piece)
        ids[new] = draws * self.vocabulary
        stays = fate != DELETE
        kept = np.add.reduceat(stays, np.cumsum(lengths) - lengths, dtype=np.int64)
        return ids[stays], kept


def image_batches(
    split: Split, view: View, batch_size: int, workers: int = 0, late: bool = False
) -> Iterator[Batch]:
    """Each image of ``split`` once, in record order, as ``view`` wants it for evaluation; every
    rank gets other ones, and all ranks together get all."""
    fetch: Callable[[np.ndarray], dict[str, Any]]
    if view.kind == "pixels":
        fetch = Pixels(split, view.pixels_eval, late).fields
    else:
        regions = Regions(split)

        def fetch(images: np.ndarray) -> dict[str, Any]:
            return regions.fetch(images, None, view.regions_eval.min_pad)

    def assemble(images: np.ndarray) -> Batch:
        return Batch(image_id=torch.from_numpy(images.copy()), **fetch(images))

    return run_ahead(assemble, _share(_slices(np.arange(split.n_images), batch_size)), workers)


def caption_batches(
    split: Split, view: View, tokens: TokenTable, batch_size: int
) -> Iterator[Batch]:
    """Each caption of ``split`` once; ``caption_id`` says which; ranks share as for images.

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

    return run_ahead(assemble, _share(_slices(order, batch_size)), workers=0)


def _positive(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: expected at least 1")


def _repeats(images: np.ndarray) -> int:
    """How many pairs of ``images`` [B] are the same image; a row is one with itself."""
    return int((np.unique(images, return_counts=True)[1] ** 2).sum())


def _share(items: list[np.ndarray]) -> list[np.ndarray]:
    """Every W-th item, from this rank's on."""
    return items[own_rank() :: world_size()]


def _slices(order: np.ndarray, size: int) -> list[np.ndarray]:
    _positive(size)
    return [order[first : first + size] for first in range(0, len(order), size)]
