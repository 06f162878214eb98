"""The pictures of a split as batches of pixels. B pictures, S their size."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.batch import Batch
from itr.data import counter_rng
from itr.data.images.decode import decode, name_of, read_bytes
from itr.data.images.transforms import DRAWS, Choices, Rest, check_view, draw, normalise, transform
from itr.data.records import Split
from itr.errors import ConfigError, DataError
from itr.view import PixelView


class BrokenPicture(DataError):
    """A picture that cannot be decoded; ``number`` is the image's in its split."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class Pixels:
    """The pictures of a split, by image number, as ``view`` wants them.

    ``late``: what need not be done on the host is left to `Batch.to`. Raises ConfigError for a
    view that cannot be done or a split without pictures.
    """

    def __init__(self, split: Split, view: PixelView, late: bool = False):
        if split.regions is not None:
            raise ConfigError(
                f"{split.source}: holds regions, but the model's view asks for pictures"
            )
        check_view(view)
        self.split, self.view, self.late = split, view, late
        self.random = view.flip or view.randaugment or view.resize == "random_crop"

    def fetch(self, images: np.ndarray, uniforms: np.ndarray | None = None) -> Tensor:
        """float32 [B, 3, S, S], normalised, of ``images`` [B].

        ``uniforms`` [B, DRAWS] in [0, 1) decide what is random in the view. Raises BrokenPicture,
        naming the file, for a picture that cannot be read.
        """
        pixels, choices = self._raw(images, uniforms)
        if self.late:
            return Rest.of(self.view, choices)(pixels)
        return normalise(pixels, self.view)

    def fields(self, images: np.ndarray, uniforms: np.ndarray | None = None) -> dict[str, Any]:
        """The picture fields of a `Batch`: as `fetch`, at once or left to the device."""
        if not self.late:
            return {"pixels": self.fetch(images, uniforms)}
        pixels, choices = self._raw(images, uniforms)
        rest = Rest.of(self.view, choices)

        def on_device(batch: Batch) -> Batch:
            assert batch.pixels is not None
            return dataclasses.replace(batch, pixels=rest(batch.pixels))

        return {"pixels": pixels, "finish": on_device}

    def _raw(self, images: np.ndarray, uniforms: np.ndarray | None) -> tuple[Tensor, list[Choices]]:
        """uint8 [B, 3, S, S] and what chance decided for each; if late, only their crops are
        taken."""
        size = self.view.size
        pixels = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
        choices = []
        for row, number in enumerate(images.tolist()):
            pixels[row], made = self._one(number, None if uniforms is None else uniforms[row])
            choices.append(made)
        return pixels, choices

    def _one(self, number: int, uniforms: np.ndarray | None) -> tuple[Tensor, Choices]:
        place, decoder = self.split.records[number].image, self.split.decoder
        try:
            image = decode(read_bytes(place), name_of(place), decoder, self.view.premultiply)
        except DataError as error:
            raise BrokenPicture(str(error), number) from error
        height, width = image.shape[-2:]
        choices = Choices() if uniforms is None else draw(self.view, uniforms, height, width)
        now = Choices(box=choices.box) if self.late else choices
        return transform(image, self.view, now, decoder), choices

    def drawn(self, seed: int, epoch: int, captions: np.ndarray) -> np.ndarray | None:
        """The uniforms [B, DRAWS] of the pictures shown with ``captions``; None: nothing random."""
        if not self.random:
            return None
        places = np.arange(DRAWS)
        return counter_rng.uniform(seed, epoch, counter_rng.PICTURE, captions[:, None], places)
