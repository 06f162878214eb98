"""Splits to batches. B pairs, R regions, D region width, L token ids.

A batch is put together in one go, and what is random in it is a pure function of (seed, epoch,
caption): workers hold no state, and any batch of any epoch can be made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from itr.batch import Batch
from itr.data import chance
from itr.data.precomp import bad_row
from itr.data.records import Split
from itr.data.text import DELETE, MASK, RANDOM, Tokenizer, TokenTable, fates
from itr.errors import ConfigError, DataError
from itr.view import RegionView, TextView, View

Item = tuple[int, np.ndarray]  # epoch, and the captions (training, texts) or images of a batch


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
        self.split = split
        self.by_image = view.unit != "caption"
        samples = split.n_images if self.by_image else split.n_captions
        if batch_size < 1 or batch_size % world:
            raise ConfigError(
                f"batch_size={batch_size}: expected a positive multiple of the {world} device(s)"
            )
        if batch_size > samples:
            raise DataError(
                f"{split.source}: batch_size={batch_size} is larger than the split's {samples} "
                f"{'images' if self.by_image else 'captions'}; type batch_size={samples} or less"
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.share = rank, batch_size // world
        self.workers, self.pin_memory = workers, pin_memory
        self.assembly = _TrainAssembly(
            _Regions(split), _Texts(tokens, view.text), split.text_to_image, view, tokenizer, seed
        )

    @property
    def batches_per_epoch(self) -> int:
        """Number of (full) batches."""
        return self.samples // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The captions of ``epoch`` in their order, int64 [captions or images]."""
        samples = np.arange(self.samples)
        draws = chance.uniform(self.seed, epoch, chance.ORDER, samples)
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
        first = self.rank * self.share
        items = [(epoch, batch[first : first + self.share]) for batch in batches[start_batch:]]
        return _run(self.assembly, items, self.workers, self.pin_memory)


def image_batches(split: Split, view: View, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Each image of ``split`` once, in record order, as ``view`` wants it for evaluation."""
    items = [(0, images) for images in _slices(np.arange(split.n_images), batch_size)]
    return _run(_ImageAssembly(_Regions(split), view.regions_eval), items, workers)


def caption_batches(
    split: Split, view: View, tokens: TokenTable, batch_size: int
) -> Iterator[Batch]:
    """Each caption of ``split`` once; ``caption_id`` says which.

    Longest first, so that a batch holds little padding; in record order where padding counts.
    """
    order = np.arange(split.n_captions)
    if not view.padding_is_arithmetic:
        order = np.argsort(-tokens.lengths, kind="stable")
    texts = _Texts(tokens, view.text_eval)
    items = [(0, captions) for captions in _slices(order, batch_size)]
    return _run(_TextAssembly(texts, split.text_to_image), items, workers=0)


def _slices(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[first : first + size] for first in range(0, len(order), size)]


def _run(
    assembly: Dataset[Batch], items: list[Item], workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        assembly,
        batch_size=None,  # an item is a whole batch
        sampler=items,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the global one belongs to dropout: leave it alone
    )
    for batch in loader:
        if isinstance(batch, DataError):  # raised in a worker it would bring its traceback along
            raise batch
        yield batch


# What is fetched


class _Regions:
    """Regions of a split by image; pickled (for workers) without taking a mapped array along."""

    def __init__(self, split: Split):
        if split.regions is None:
            raise ConfigError(f"{split.source}: holds no regions, which the model's view asks for")
        self.array = split.regions
        self.rows = np.array([record.image for record in split.records], dtype=np.int64)
        self.source = split.source

    def __getstate__(self) -> dict[str, Any]:
        mapped = isinstance(self.array, np.memmap)
        return {**vars(self), "array": Path(str(self.array.filename)) if mapped else self.array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["array"], Path):
            state["array"] = np.load(state["array"], mmap_mode="r", allow_pickle=False)
        vars(self).update(state)

    def fetch(self, images: np.ndarray, keep: np.ndarray | None, min_pad: int) -> dict[str, Any]:
        """The region fields of a `Batch`. Of ``images`` [B] only the regions in ``keep`` [B, R]
        are taken, moved to the front. Raises DataError for features that are not finite."""
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
        regions = torch.from_numpy(values).float()
        if not torch.isfinite(regions.sum()):
            self._require_finite(rows)
        return {
            "regions": regions,
            "region_mask": torch.from_numpy(mask),
            "min_region_length": int(lengths.min()),
        }

    def _require_finite(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            values = np.asarray(self.array[row])
            if not np.isfinite(values).all():
                raise DataError(f"{self.source}: {bad_row(row, values)}")


@dataclass
class _Texts:
    """Captions of a split, padded as ``view`` asks."""

    table: TokenTable
    view: TextView

    def __post_init__(self) -> None:
        longest = int(self.table.lengths.max(initial=0))
        if self.view.pad_to is not None and longest > self.view.pad_to:
            raise ConfigError(
                f"pad_to={self.view.pad_to}: the longest caption has {longest} ids; set max_length "
                f"to {self.view.pad_to} or less, or pad_to to {longest}"
            )

    def pad(self, ids: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
        """The token fields of a `Batch` of ragged ``ids`` [sum of ``lengths`` [B]]."""
        width = self.view.pad_to or max(int(lengths.max()), self.view.min_pad)
        mask = np.arange(width) < lengths[:, None]
        tokens = np.zeros(mask.shape, dtype=np.int64)
        tokens[mask] = ids
        return {
            "tokens": torch.from_numpy(tokens),
            "token_mask": torch.from_numpy(mask),
            "min_token_length": int(lengths.min()),
        }


# How it becomes a batch


class _Assembly(Dataset[Batch]):
    def __getitem__(self, item: Item) -> Any:
        try:
            return self.assemble(*item)
        except DataError as error:
            return error

    def assemble(self, epoch: int, numbers: np.ndarray) -> Batch:
        raise NotImplementedError


@dataclass
class _ImageAssembly(_Assembly):
    regions: _Regions
    view: RegionView

    def assemble(self, epoch: int, numbers: np.ndarray) -> Batch:
        fields = self.regions.fetch(numbers, None, self.view.min_pad)
        return Batch(image_id=torch.from_numpy(numbers.copy()), **fields)


@dataclass
class _TextAssembly(_Assembly):
    texts: _Texts
    text_to_image: np.ndarray

    def assemble(self, epoch: int, numbers: np.ndarray) -> Batch:
        places, lengths = self.texts.table.positions(numbers)
        return Batch(
            image_id=torch.from_numpy(self.text_to_image[numbers]),
            caption_id=torch.from_numpy(numbers.copy()),
            **self.texts.pad(self.texts.table.ids[places], lengths),
        )


class _TrainAssembly(_Assembly):
    def __init__(
        self,
        regions: _Regions,
        texts: _Texts,
        text_to_image: np.ndarray,
        view: View,
        tokenizer: Tokenizer,
        seed: int,
    ):
        self.regions, self.texts, self.text_to_image = regions, texts, text_to_image
        self.view, self.seed = view, seed
        self.vocabulary, self.mask_id = tokenizer.vocabulary_size, tokenizer.mask_id

    def assemble(self, epoch: int, numbers: np.ndarray) -> Batch:
        images = self.text_to_image[numbers]
        keep = self.drop_regions(epoch, numbers) if self.view.regions.drop > 0 else None
        ids, lengths = self.draw_texts(epoch, numbers)
        return Batch(
            image_id=torch.from_numpy(images),
            caption_id=torch.from_numpy(numbers.copy()),
            positive_pairs=int((np.unique(images, return_counts=True)[1] ** 2).sum()),
            **self.regions.fetch(images, keep, self.view.regions.min_pad),
            **self.texts.pad(ids, lengths),
        )

    def drop_regions(self, epoch: int, captions: np.ndarray) -> np.ndarray:
        """Which regions stay, bool [B, R].

        The authors' code may drop all of an image, whose mean is then NaN: here the one with the
        largest draw always stays.
        """
        count = np.arange(self.regions.array.shape[1])
        draws = chance.uniform(self.seed, epoch, chance.REGION, captions[:, None], count)
        keep = draws > self.view.regions.drop
        keep[np.arange(len(captions)), draws.argmax(axis=1)] = True
        return keep

    def draw_texts(self, epoch: int, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of ``captions`` [B], augmented if the view says so, and their lengths [B]."""
        table, rule = self.texts.table, self.view.text.augment
        places, lengths = table.positions(captions)
        ids, words = table.ids[places], table.words[places]
        if rule is None:
            return ids, lengths
        owner = np.repeat(captions, lengths)
        # Pieces of a word have equal (owner, word), so they share its draw.
        draws = chance.uniform(self.seed, epoch, chance.WORD, owner, words)
        fate = fates(np.where(words < 0, -1, np.arange(len(words))), draws, rule)
        ids = np.where(fate == MASK, self.mask_id, ids)
        new = fate == RANDOM
        draws = chance.uniform(self.seed, epoch, chance.PIECE, owner[new], places[new])
        ids[new] = (draws * self.vocabulary).astype(ids.dtype)
        stays = fate != DELETE
        lengths = np.add.reduceat(stays, np.cumsum(lengths) - lengths, dtype=np.int64)
        return ids[stays], lengths
