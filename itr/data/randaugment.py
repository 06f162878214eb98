"""RandAugment as ALBEF uses it: two of ten operations at magnitude 7 of 10, on uint8 [3, H, W].

Geometry is bilinear in the fixed-point arithmetic of OpenCV's ``warpAffine`` (1/32 pixel, weights
of 15 bits), which the authors' code calls: written out here, the numbers need no OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Operation = tuple[str, float]  # name, signed argument
Matrix = tuple[float, float, float, float, float, float]  # 2 x 3, row by row

FILL = 128  # grey outside the picture
ONES = 1 | 1 << 20 | 1 << 40  # a 1 in each of three lanes
APPLIED = 0.5  # probability of each of the two operations
ARGUMENTS = {  # of each operation at magnitude 7
    "Identity": 0.0,
    "AutoContrast": 0.0,
    "Equalize": 0.0,
    "Brightness": 0.7 * 1.8 + 0.1,
    "Sharpness": 0.7 * 1.8 + 0.1,
    "ShearX": 0.7 * 0.3,  # pixels a row
    "ShearY": 0.7 * 0.3,
    "TranslateX": 0.7 * 10,  # pixels, whatever the size
    "TranslateY": 0.7 * 10,
    "Rotate": 0.7 * 30,  # degrees, counter-clockwise
}
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def draw_operations(uniforms: np.ndarray) -> tuple[Operation, ...]:
    """What is applied, in order, from ``uniforms`` [6]: two names, whether, and which sign."""
    names = list(ARGUMENTS)
    chosen = [names[int(u * len(names))] for u in uniforms[:2].tolist()]
    applied, signs = uniforms[2:4] <= APPLIED, uniforms[4:6] > 0.5
    return tuple(
        (name, -ARGUMENTS[name] if name in SIGNED and negative else ARGUMENTS[name])
        for name, use, negative in zip(chosen, applied, signs, strict=True)
        if use
    )


def apply_operation(image: Tensor, operation: Operation, wrapping: bool = False) -> Tensor:
    """uint8 [3, H, W] of ``image`` after one operation.

    ``wrapping`` repeats the authors' slips of 8-bit arithmetic: contrast saturates every channel
    that holds no 0, and sharpened values beyond 0 .. 255 wrap around.
    """
    name, argument = operation
    if name == "AutoContrast" and wrapping:
        return _wrapping_contrast(image)
    if name == "Sharpness":
        return _sharpen(image, argument, wrapping)
    if name in PLAIN:
        return PLAIN[name](image)
    if name == "Brightness":
        return (image.float() * argument).clamp_(max=255).to(torch.uint8)
    return warp(image, forward_matrix(name, argument, *image.shape[-2:]))


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda image: image,
    "AutoContrast": F.autocontrast,
    "Equalize": F.equalize,
}


def _wrapping_contrast(image: Tensor) -> Tensor:
    """Contrast stretched from a low bound whose negation is 256 - low."""
    out = torch.empty_like(image)
    for channel, values in enumerate(image.numpy()):
        low, high = int(values.min()), int(values.max())
        if high == low:
            out[channel] = image[channel]
            continue
        scale = 255 / (high - low)
        offset = ((256 - low) % 256) * scale
        table = (np.arange(256) * scale + offset).clip(0, 255).astype(np.uint8)
        out[channel] = torch.from_numpy(table[values])
    return out


def _sharpen(image: Tensor, factor: float, wrapping: bool) -> Tensor:
    """``factor`` times the way from the blurred picture to it; its border of one pixel stays."""
    if min(image.shape[-2:]) < 3:
        return image
    values = image.float()
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = values[:, 1:-1, 1:-1]
    blurred = (box + 4 * inner).div_(13).round_()
    sharp = blurred + factor * (inner - blurred)
    if not wrapping:
        sharp = sharp.clamp_(0, 255)
    out = image.clone()
    out[:, 1:-1, 1:-1] = sharp.to(torch.int32).to(torch.uint8)  # the second cast wraps around
    return out


# Geometry


def forward_matrix(name: str, argument: float, height: int, width: int) -> Matrix:
    """Where the pixel (x, y) goes."""
    if name == "ShearX":
        return 1, argument, 0, 0, 1, 0
    if name == "ShearY":
        return 1, 0, 0, argument, 1, 0
    if name == "TranslateX":
        return 1, 0, -argument, 0, 1, 0
    if name == "TranslateY":
        return 1, 0, 0, 0, 1, -argument
    cos, sin = math.cos(math.radians(argument)), math.sin(math.radians(argument))
    x, y = width / 2, height / 2
    return cos, sin, (1 - cos) * x - sin * y, -sin, cos, sin * x + (1 - cos) * y


def _inverse(matrix: Matrix) -> Matrix:
    a, b, c, d, e, f = matrix
    scale = 1 / (a * e - b * d)
    a, b, d, e = e * scale, -b * scale, -d * scale, a * scale
    return a, b, -a * c - b * f, d, e, -d * c - e * f


def warp(image: Tensor, matrix: Matrix) -> Tensor:
    """uint8 [3, H, W] of ``image`` under the affine map ``matrix``; FILL comes in from outside."""
    a, b, c, d, e, f = _inverse(matrix)
    height, width = image.shape[-2:]
    x, y = (
        _fixed(row * np.arange(height)[:, None] + shift) + 16 + _fixed(column * np.arange(width))
        for row, column, shift in ((b, a, c), (e, d, f))
    )
    x, y = x >> 5, y >> 5  # in 1/32 pixel
    left, top, right, low = x >> 5, y >> 5, x & 31, y & 31
    # Channels in lanes of 20 bits: one look-up and one product for all three.
    red, green, blue = image.numpy().astype(np.int64)
    packed = np.full((height + 2, width + 2), FILL * ONES)
    packed[1:-1, 1:-1] = red | green << 20 | blue << 40
    total = np.full((height, width), 512 * ONES)
    columns = [np.clip(left + shift, 0, width + 1) for shift in (1, 2)]
    for shift, vertical in ((1, 32 - low), (2, low)):
        row = np.clip(top + shift, 0, height + 1) * (width + 2)
        for column, horizontal in zip(columns, (32 - right, right), strict=True):
            total += packed.ravel().take(row + column) * (vertical * horizontal)
    lanes = [(total >> shift).astype(np.uint8) for shift in (10, 30, 50)]
    return torch.from_numpy(np.stack(lanes))


def _fixed(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 1024).astype(np.int32)
