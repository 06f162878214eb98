"""What a `PixelView` asks for, done to one picture. H, W its height and width, S the view's size.

Random choices are made apart from the pixels (`draw`), so that recorded ones can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from itr.data.images.randaugment import (
    Operation,
    apply_operation,
    apply_operations,
    draw_operations,
    grouped,
)
from itr.errors import ConfigError
from itr.view import PixelView

Box = tuple[int, int, int, int]  # top, left, height, width

RESIZES = ("squash", "shortest", "random_crop")
MODES = {
    "bicubic": (InterpolationMode.BICUBIC, Image.Resampling.BICUBIC),
    "bilinear": (InterpolationMode.BILINEAR, Image.Resampling.BILINEAR),
}
ATTEMPTS = 10  # at a random crop before the central one is taken
DRAWS = 4 * ATTEMPTS + 7  # uniforms that one picture may use
LONGEST = 16  # times the short side: what lies further out is cut off before a resize


@dataclass(frozen=True)
class Choices:
    """What chance decided for one picture."""

    box: Box | None = None  # of random_crop
    flip: bool = False
    operations: tuple[Operation, ...] = ()


def check_view(view: PixelView) -> None:
    """Raise ConfigError for a view that nothing here can do."""
    for key, value, known in (
        ("resize", view.resize, RESIZES),
        ("interpolation", view.interpolation, tuple(MODES)),
    ):
        if value not in known:
            raise ConfigError(f"image {key} '{value}': unknown (known: {', '.join(known)})")
    if view.size < 1:
        raise ConfigError(f"image size {view.size}: expected at least 1")


def draw(view: PixelView, uniforms: np.ndarray, height: int, width: int) -> Choices:
    """The choices for a picture, from ``uniforms`` [DRAWS] in [0, 1): crop, flip, RandAugment."""
    box = random_box(view, uniforms, height, width) if view.resize == "random_crop" else None
    rest = uniforms[4 * ATTEMPTS :]
    return Choices(
        box=box,
        flip=view.flip and bool(rest[0] < 0.5),
        operations=draw_operations(rest[1:]) if view.randaugment else (),
    )


def random_box(view: PixelView, uniforms: np.ndarray, height: int, width: int) -> Box:
    """A crop with its area share uniform in ``crop_scale`` and log ratio in ``crop_ratio``.

    Source: Szegedy et al., "Going deeper with convolutions", as torchvision does it: after ten
    boxes that do not fit, the central one of the nearest allowed ratio.
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
    """uint8 [3, S, S] of ``image``, uint8 [3 or 4, H, W]; resized as ``decoder`` resizes."""
    if choices.box is not None:
        image = F.crop(image, *choices.box)
    image = _resize(image, view, decoder)
    if choices.flip:
        image = image.flip(-1)
    for operation in choices.operations:
        image = apply_operation(image, operation, view.wrapping)
    return image


@dataclass(frozen=True)
class Rest:
    """What is left to do for pictures that were cropped and resized, put in order on the host."""

    view: PixelView
    flipped: list[int]
    steps: list[dict[Operation, list[int]]]  # of RandAugment

    @classmethod
    def of(cls, view: PixelView, choices: Sequence[Choices]) -> Rest:
        """What ``choices`` [B] leave to do."""
        flipped = [row for row, choice in enumerate(choices) if choice.flip]
        return cls(view, flipped, grouped([choice.operations for choice in choices]))

    def __call__(self, images: Tensor) -> Tensor:
        """float32 of ``images`` uint8 [B, 3, S, S], where they are: flip, RandAugment, normalise.
        The same numbers as `transform` and `normalise` give."""
        if self.flipped:
            where = torch.tensor(self.flipped, device=images.device)
            images = images.index_copy(0, where, images[where].flip(-1))
        if self.steps:
            images = apply_operations(images, self.steps, self.view.wrapping)
        return normalise(images, self.view)


def normalise(images: Tensor, view: PixelView) -> Tensor:
    """float32 of ``images`` uint8 [..., 3, S, S]: in [0, 1], less the mean, by the deviation."""
    mean, std = (
        torch.tensor(value, device=images.device).view(3, 1, 1) for value in (view.mean, view.std)
    )
    return images.float().div_(255).sub_(mean).div_(std)


def _resize(image: Tensor, view: PixelView, decoder: str) -> Tensor:
    size, (height, width) = view.size, image.shape[-2:]
    if view.resize != "shortest":
        return _resample(image, size, size, view.interpolation, decoder)
    short, long = sorted((height, width))
    if long > LONGEST * short:
        image = F.center_crop(image, [min(side, LONGEST * short) for side in (height, width)])
        (height, width), long = image.shape[-2:], LONGEST * short
    long = int(size * long / short)
    h, w = (size, long) if height <= width else (long, size)
    image = _resample(image, h, w, view.interpolation, decoder)
    return F.crop(image, round((h - size) / 2), round((w - size) / 2), size, size)


def _resample(image: Tensor, height: int, width: int, mode: str, decoder: str) -> Tensor:
    """uint8 [3, height, width]; a fourth channel is alpha and weighs the others."""
    tensor_mode, pil_mode = MODES[mode]
    if decoder == "torchvision" and image.shape[0] == 3:
        return F.resize(image, [height, width], tensor_mode, antialias=True)
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    picture = picture.resize((width, height), pil_mode)
    return torch.from_numpy(np.array(picture)[..., :3]).permute(2, 0, 1)
