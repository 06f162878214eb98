"""Computes the image and caption fields of training batches, random augmentation included.

B pairs, R regions, L token ids. Every random choice is a pure function of (seed, epoch, caption).
``share`` selects the rows of one rank; what depends on the whole batch (the padding) is computed
from all rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from itr.data import counter_rng
from itr.data.images.pixels import Pixels
from itr.data.images.regions import Regions
from itr.data.images.transforms import FLIP_DRAW
from itr.data.items import Statement
from itr.data.loading.sided import find_sided
from itr.data.records import Split
from itr.data.text.caption_augment import DELETE, MASK, RANDOM, word_actions
from itr.data.text.token_table import CaptionPadder, TokenTable
from itr.data.text.tokenizer import Tokenizer
from itr.errors import ConfigError
from itr.view import View

ALL = slice(None)


def second_images(split: Split) -> np.ndarray | None:
    """The index of the second image of each caption, int64 [C]; None: captions have only one."""
    seconds = [
        item.second
        for item in split.items or ()
        if isinstance(item, Statement) and item.second is not None
    ]
    return np.array(seconds, dtype=np.int64) if seconds else None


class TrainImages:
    """The images of training pairs, as pixels or as region features, as ``view`` requires.

    See `Pixels` for ``finish_on_device`` and `Regions` for ``cached_regions``.
    """

    def __init__(
        self,
        split: Split,
        view: View,
        seed: int,
        finish_on_device: bool = False,
        cached_regions: Tensor | None = None,
    ):
        self.split, self.view, self.seed = split, view, seed
        self.pixels: Pixels | None = None
        self.regions: Regions | None = None
        self.second: np.ndarray | None = None  # int64 [C]: the second image of a pair
        self.sided: np.ndarray | None = None  # bool [C]: captions whose images are not flipped
        if view.kind == "pixels":
            self.pixels = Pixels(split, view.pixels, finish_on_device)
            self.second = second_images(split)
            if view.pixels.flip and not view.pixels.flip_sided:
                self.sided = find_sided(split)
        else:
            self.regions = Regions(split, cached_regions)

    def fields(self, epoch: int, captions: np.ndarray, share: slice = ALL) -> dict[str, Any]:
        """The image fields of a `Batch` of the pairs ``captions`` [B]."""
        images = self.split.text_to_image[captions[share]]
        if self.pixels is not None:
            uniforms = self._draw(epoch, captions[share], counter_rng.IMAGE)
            if self.second is None:
                return self.pixels.fields(images, uniforms)
            others = self._draw(epoch, captions[share], counter_rng.SECOND_IMAGE)
            second = self.second[captions[share]]
            return self.pixels.pair_fields(images, second, (uniforms, others))
        assert self.regions is not None
        min_pad = self.view.regions.min_pad
        if self.view.regions.drop == 0:
            return self.regions.fields(images, None, min_pad)
        keep = self.kept_regions(epoch, captions)
        width = max(int(keep.sum(axis=1).max()), min_pad)
        return self.regions.fields(images, keep[share], width)

    def _draw(self, epoch: int, captions: np.ndarray, stream: int) -> np.ndarray | None:
        """Uniform numbers for the images of ``captions`` [B]; see `Pixels.draw_uniforms`."""
        assert self.pixels is not None
        uniforms = self.pixels.draw_uniforms(self.seed, epoch, captions, stream)
        if self.sided is not None and uniforms is not None:
            uniforms[self.sided[captions], FLIP_DRAW] = 1.0
        return uniforms

    def kept_regions(self, epoch: int, captions: np.ndarray) -> np.ndarray:
        """The regions of each pair that are not dropped, bool [B, R].

        The authors' code may drop all regions of an image, whose mean is then NaN. Here the region
        with the largest draw always stays.
        """
        assert self.regions is not None
        region = np.arange(self.regions.array.shape[1])
        draws = counter_rng.uniform(self.seed, epoch, counter_rng.REGION, captions[:, None], region)
        keep = draws > self.view.regions.drop
        keep[np.arange(len(captions)), draws.argmax(axis=1)] = True
        return keep


class TrainCaptions:
    """The captions of training pairs, augmented and padded as ``view`` requires.

    Raises ConfigError for an augmentation that needs a mask token which ``tokenizer`` lacks.
    """

    def __init__(self, table: TokenTable, tokenizer: Tokenizer, view: View, seed: int):
        self.table, self.seed = table, seed
        self.padder = CaptionPadder(table, view.text)
        self.augment = view.text.augment
        self.vocabulary_size, self.mask_id = tokenizer.vocabulary_size, tokenizer.mask_id
        if self.augment is not None and self.mask_id is None:
            raise ConfigError(
                f"tokenizer {view.tokenizer}: has no mask token, which the caption augmentation "
                "needs; use a BERT tokenizer, or turn the augmentation off"
            )

    def fields(self, epoch: int, captions: np.ndarray, share: slice = ALL) -> dict[str, Any]:
        """The caption fields of a `Batch` of ``captions`` [B], as wide as all of them need."""
        ids, lengths = self.draw(epoch, captions)
        start = int(lengths[: share.start or 0].sum())
        own = lengths[share]
        return self.padder.fields(ids[start : start + int(own.sum())], own, int(lengths.max()))

    def draw(self, epoch: int, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of ``captions`` [B], concatenated and augmented, and their lengths [B]."""
        positions, lengths = self.table.positions(captions)
        ids, words = self.table.flat[positions], self.table.words[positions]
        if self.augment is None:
            return ids, lengths
        caption = np.repeat(captions, lengths)
        # All pieces of a word have the same (caption, word) and therefore share its draw.
        draws = counter_rng.uniform(self.seed, epoch, counter_rng.WORD, caption, words)
        numbers = np.where(words < 0, -1, np.arange(len(words)))
        actions = word_actions(numbers, draws, self.augment)
        assert self.mask_id is not None
        ids = np.where(actions == MASK, self.mask_id, ids)
        new = actions == RANDOM
        piece = (positions - self.table.offsets[caption])[new]
        draws = counter_rng.uniform(self.seed, epoch, counter_rng.PIECE, caption[new], piece)
        ids[new] = draws * self.vocabulary_size
        stays = actions != DELETE
        counts = np.add.reduceat(stays, np.cumsum(lengths) - lengths, dtype=np.int64)
        return ids[stays], counts
