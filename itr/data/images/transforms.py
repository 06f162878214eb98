"""Image transforms of a `PixelView`. H, W height and width of an image, S the view's size.

Random choices are drawn separately from the pixels (`draw_choices`), so that recorded choices can
be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itr.batch import sent
from itr.data.images.randaugment import (
    Operation,
    apply_operation,
    apply_operations,
    draw_operations,
    grouped,
    torchvision_functional,
)
from itr.errors import ConfigError
from itr.view import PixelView

Box = tuple[int, int, int, int]  # top, left, height, width

RESIZES = ("squash", "shortest", "longest", "random_crop")
INTERPOLATIONS = ("bicubic", "bilinear")
MODES = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,  # of images with a palette, see `pixels.decode_for`
}
ATTEMPTS = 10  # random crops that are tried before the center crop is used
DRAWS = 4 * ATTEMPTS + 7  # uniform numbers per image
FLIP_DRAW = 4 * ATTEMPTS  # which of them decides about the flip: below 1/2
MAX_ASPECT_RATIO = 16  # longer images are center-cropped to it before they are resized


@dataclass(frozen=True)
class Choices:
    """Random choices for one image."""

    box: Box | None = None  # random_crop
    flip: bool = False
    operations: tuple[Operation, ...] = ()


def check_view(view: PixelView) -> None:
    """Raises ConfigError for an invalid view."""
    for key, value, known in (
        ("resize", view.resize, RESIZES),
        ("interpolation", view.interpolation, INTERPOLATIONS),
    ):
        if value not in known:
            raise ConfigError(f"image {key}='{value}': unknown; expected one of {', '.join(known)}")
    if view.crop_rounds not in ("even", "down"):
        raise ConfigError(f"image crop_rounds='{view.crop_rounds}': expected even or down")
    if view.size < 1 or (view.resize_to or view.size) < view.size:
        raise ConfigError(
            f"image size={view.size}, resize_to={view.resize_to}: expected at least 1, and at "
            "least the size to resize to"
        )


def draw_choices(view: PixelView, uniforms: np.ndarray, height: int, width: int) -> Choices:
    """Crop, flip and RandAugment of an image, from ``uniforms`` [DRAWS] in [0, 1)."""
    box = random_box(view, uniforms, height, width) if view.resize == "random_crop" else None
    rest = uniforms[FLIP_DRAW:]
    return Choices(
        box=box,
        flip=view.flip and bool(rest[0] < 0.5),
        operations=draw_operations(rest[1:]) if view.randaugment else (),
    )


def random_box(view: PixelView, uniforms: np.ndarray, height: int, width: int) -> Box:
    """A random crop: area uniform in ``crop_scale``, log aspect ratio uniform in ``crop_ratio``.

    Source: Szegedy et al., "Going deeper with convolutions" (CVPR 2015), as in torchvision: after
    ten boxes that do not fit, the center crop with the nearest allowed aspect ratio.
    """
    (low, high), ratios = view.crop_scale, view.crop_ratio
    logs = [math.log(ratio) for ratio in ratios]
    for area, shape, top, left in uniforms[: 4 * ATTEMPTS].reshape(ATTEMPTS, 4).tolist():
        pixels = height * width * (low + area * (high - low))
        ratio = math.exp(logs[0] + shape * (logs[1] - logs[0]))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    h, w = height, width
    if width / height < ratios[0]:
        h = max(1, round(width / ratios[0]))
    elif width / height > ratios[1]:
        w = max(1, round(height * ratios[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def transform(image: Tensor, view: PixelView, choices: Choices, decoder: str) -> Tensor:
    """Crop, resize, flip and RandAugment: ``image`` uint8 [3 or 4, H, W] -> uint8 [3, S, S].

    ``decoder`` selects the library that resizes.
    """
    if choices.box is not None:
        image = torchvision_functional().crop(image, *choices.box)
    image = _resize(image, view, decoder)
    if choices.flip:
        image = image.flip(-1)
    for operation in choices.operations:
        image = apply_operation(image, operation, view.wrapping)
    return image


@dataclass(frozen=True)
class RemainingTransforms:
    """Flip, RandAugment and normalization of a batch whose images are cropped and resized."""

    view: PixelView
    flipped: list[int]  # rows
    steps: list[dict[Operation, list[int]]]  # RandAugment: the rows of each operation

    @classmethod
    def of(cls, view: PixelView, choices: Sequence[Choices]) -> RemainingTransforms:
        """The remaining transforms of ``choices`` [B]."""
        flipped = [row for row, choice in enumerate(choices) if choice.flip]
        return cls(view, flipped, grouped([choice.operations for choice in choices]))

    def __call__(self, images: Tensor) -> Tensor:
        """Transform ``images`` uint8 [B, 3, S, S] on their device: float32 [B, 3, S, S].

        Gives the same numbers as `transform` and `normalize`.
        """
        if self.flipped:
            where = sent(np.array(self.flipped), images.device)
            images = images.index_copy(0, where, images[where].flip(-1))
        if self.steps:
            images = apply_operations(images, self.steps, self.view.wrapping)
        return normalize(images, self.view)


def normalize(images: Tensor, view: PixelView) -> Tensor:
    """Scale ``images`` uint8 [..., 3, S, S] to [0, 1], subtract the mean, divide by the std."""
    mean, std = (
        sent(np.array(value, dtype=np.float32), images.device).view(3, 1, 1)
        for value in (view.mean, view.std)
    )
    return images.float().div_(255).sub_(mean).div_(std)


def _resize(image: Tensor, view: PixelView, decoder: str) -> Tensor:
    if view.resize == "longest":
        return _fit(image, view, decoder)
    target, (height, width) = view.resize_to or view.size, image.shape[-2:]
    if view.resize != "shortest":
        image = _resample(image, target, target, view.interpolation, decoder)
        return _center(image, view) if target != view.size else image
    short, long = sorted((height, width))
    if long > MAX_ASPECT_RATIO * short:
        image = torchvision_functional().center_crop(
            image, [min(side, MAX_ASPECT_RATIO * short) for side in (height, width)]
        )
        (height, width), long = image.shape[-2:], MAX_ASPECT_RATIO * short
    long = int(target * long / short)
    h, w = (target, long) if height <= width else (long, target)
    return _center(_resample(image, h, w, view.interpolation, decoder), view)


def _center(image: Tensor, view: PixelView) -> Tensor:
    """The square of S pixels in the middle; see `PixelView.crop_rounds`."""
    rounded = math.floor if view.crop_rounds == "down" else round
    top, left = (rounded((side - view.size) / 2) for side in image.shape[-2:])
    return torchvision_functional().crop(image, top, left, view.size, view.size)


def _fit(image: Tensor, view: PixelView, decoder: str) -> Tensor:
    """Resize the longer side to S and pad the other one on both sides, as open_clip does."""
    longest = max(image.shape[-2:])
    h, w = (max(1, round(side / (longest / view.size))) for side in image.shape[-2:])
    image = _resample(image, h, w, view.interpolation, decoder)
    top, left = (view.size - h) // 2, (view.size - w) // 2
    margins = [left, top, view.size - w - left, view.size - h - top]
    return torchvision_functional().pad(image, margins, fill=view.fill)


def _resample(image: Tensor, height: int, width: int, mode: str, decoder: str) -> Tensor:
    """Resize to uint8 [3, height, width]; a fourth channel is alpha and weighs the others."""
    if decoder == "torchvision" and image.shape[0] == 3 and mode != "nearest":
        from torchvision.transforms.v2 import InterpolationMode

        library, tensor_mode = torchvision_functional(), InterpolationMode(mode)
        return library.resize(image, [height, width], tensor_mode, antialias=True)
    resized = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    resized = resized.resize((width, height), MODES[mode])
    return torch.from_numpy(np.array(resized)[..., :3]).permute(2, 0, 1)
