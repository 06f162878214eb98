"""Reads images of a split as batches of pixels. B images, S their size."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.batch import Batch
from itr.data import counter_rng
from itr.data.images.decode import decode, has_palette, image_name, read_bytes
from itr.data.images.transforms import (
    DRAWS,
    Choices,
    RemainingTransforms,
    check_view,
    draw_choices,
    normalize,
    transform,
)
from itr.data.records import Split
from itr.errors import ConfigError, DataError
from itr.view import PixelView


class BrokenImageError(DataError):
    """An image that cannot be decoded; ``image`` is its index in the split."""

    def __init__(self, message: str, image: int):
        super().__init__(message)
        self.image = image


def decode_for(view: PixelView, data: bytes, name: str, decoder: str) -> tuple[Tensor, PixelView]:
    """The image in ``data``, and ``view`` as it applies to it; raises DataError as `decode`.

    Where PIL resizes an image before it is converted to RGB (``premultiply``), one with a palette
    is not interpolated.
    """
    image = decode(data, name, decoder, view.premultiply, view.on_white)
    if view.premultiply and has_palette(data):
        view = dataclasses.replace(view, interpolation="nearest")
    return image, view


class Pixels:
    """Reads images of a split by index, transformed as ``view`` requires.

    With ``finish_on_device`` the host only decodes, crops and resizes; `Batch.to` does the rest.
    Raises ConfigError for an invalid view or a split without image files.
    """

    def __init__(self, split: Split, view: PixelView, finish_on_device: bool = False):
        if split.regions is not None:
            raise ConfigError(
                f"{split.source}: contains region features, but the model requires images"
            )
        check_view(view)
        self.split, self.view, self.finish_on_device = split, view, finish_on_device
        self.random = view.flip or view.randaugment or view.resize == "random_crop"

    def fetch(self, images: np.ndarray, uniforms: np.ndarray | None = None) -> Tensor:
        """Normalized pixels of ``images`` [B], float32 [B, 3, S, S].

        ``uniforms`` [B, DRAWS] in [0, 1) determine the random transforms. Raises BrokenImageError,
        naming the file, if an image cannot be decoded.
        """
        pixels, choices = self._raw(images, uniforms)
        if self.finish_on_device:
            return RemainingTransforms.of(self.view, choices)(pixels)
        return normalize(pixels, self.view)

    def fields(
        self, images: np.ndarray, uniforms: np.ndarray | None = None, name: str = "pixels"
    ) -> dict[str, Any]:
        """The image fields of a `Batch` of ``images`` [B]; see `fetch`.

        ``name`` is that of the field: ``pixels`` or ``second_pixels``.
        """
        if not self.finish_on_device:
            return {name: self.fetch(images, uniforms)}
        pixels, choices = self._raw(images, uniforms)
        rest = RemainingTransforms.of(self.view, choices)

        def on_device(batch: Batch) -> Batch:
            finished: dict[str, Any] = {name: rest(getattr(batch, name))}
            return dataclasses.replace(batch, **finished)

        return {name: pixels, "finish": on_device}

    def pair_fields(
        self,
        first: np.ndarray,
        second: np.ndarray,
        uniforms: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    ) -> dict[str, Any]:
        """The image fields of a `Batch` of pairs of images [B]: ``pixels``, ``second_pixels``."""
        left = self.fields(first, uniforms[0])
        right = self.fields(second, uniforms[1], "second_pixels")
        both = {**left, **right}
        if self.finish_on_device:
            finish_left, finish_right = left["finish"], right["finish"]
            both["finish"] = lambda batch: finish_right(finish_left(batch))
        return both

    def _raw(self, images: np.ndarray, uniforms: np.ndarray | None) -> tuple[Tensor, list[Choices]]:
        """Images [B, 3, S, S] as uint8 and the random choices of each.

        With ``finish_on_device`` only the crops have been applied.
        """
        size = self.view.size
        pixels = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
        choices = []
        for row, image in enumerate(images.tolist()):
            pixels[row], choice = self._one(image, None if uniforms is None else uniforms[row])
            choices.append(choice)
        return pixels, choices

    def _one(self, index: int, uniforms: np.ndarray | None) -> tuple[Tensor, Choices]:
        file, decoder = self.split.records[index].image, self.split.decoder
        try:
            image, view = decode_for(self.view, read_bytes(file), image_name(file), decoder)
        except DataError as error:
            raise BrokenImageError(str(error), index) from error
        height, width = image.shape[-2:]
        choices = (
            Choices() if uniforms is None else draw_choices(self.view, uniforms, height, width)
        )
        now = Choices(box=choices.box) if self.finish_on_device else choices
        return transform(image, view, now, decoder), choices

    def draw_uniforms(
        self, seed: int, epoch: int, captions: np.ndarray, stream: int = counter_rng.IMAGE
    ) -> np.ndarray | None:
        """The ``uniforms`` [B, DRAWS] for the images of ``captions``; None: nothing is random."""
        if not self.random:
            return None
        position = np.arange(DRAWS)
        return counter_rng.uniform(seed, epoch, stream, captions[:, None], position)
