"""RandAugment as ALBEF uses it: two of ten operations at magnitude 7, on uint8 [..., 3, H, W].

Geometry is bilinear in the fixed-point arithmetic of OpenCV's ``warpAffine`` (1/32 pixel, weights
of 15 bits), which the authors' code calls: written out here, the numbers need no OpenCV.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.batch import sent

Operation = tuple[str, float]  # name, signed argument
Matrix = tuple[float, float, float, float, float, float]  # 2 x 3, row by row


@functools.cache
def torchvision_functional() -> Any:
    """torchvision's functional transforms, imported on first use: it takes more than a second, and
    models of region features never need it."""
    from torchvision.transforms.v2 import functional

    return functional


FILL = 128  # gray outside the image
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
    """uint8 [..., 3, H, W] of ``image`` after one operation.

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


def grouped(operations: Sequence[Sequence[Operation]]) -> list[dict[Operation, list[int]]]:
    """For the first operation of each picture, then the second: who asks for the same one."""
    steps: list[dict[Operation, list[int]]] = []
    for row, own in enumerate(operations):
        for step, operation in enumerate(own):
            if step == len(steps):
                steps.append({})
            steps[step].setdefault(operation, []).append(row)
    return steps


def apply_operations(
    images: Tensor, steps: Sequence[dict[Operation, list[int]]], wrapping: bool = False
) -> Tensor:
    """uint8 [B, 3, H, W] of ``images``, each after its operations (`grouped`), where they are.

    Pictures that ask for the same operation get it together: no look at the pixels on the host.
    """
    images = images.clone()
    groups = [(operation, chosen) for rows in steps for operation, chosen in rows.items()]
    chosen_rows = sent(np.concatenate([chosen for _, chosen in groups]), images.device)
    pieces = chosen_rows.split([len(chosen) for _, chosen in groups])
    for (operation, _), where in zip(groups, pieces, strict=True):
        images[where] = apply_operation(images[where], operation, wrapping)
    return images


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda image: image,
    "AutoContrast": lambda image: torchvision_functional().autocontrast(image),
    "Equalize": lambda image: torchvision_functional().equalize(image),
}


def _wrapping_contrast(image: Tensor) -> Tensor:
    """Contrast stretched from a low bound whose negation is 256 - low."""
    values = image.flatten(-2)
    low, high = (bound.double().unsqueeze(-1) for bound in (values.amin(-1), values.amax(-1)))
    scale = 255 / (high - low)
    gray = torch.arange(256, dtype=torch.float64, device=image.device)
    table = (gray * scale + (256 - low) % 256 * scale).clamp(0, 255)
    table = torch.where(high == low, gray, table).to(torch.uint8)
    return table.gather(-1, values.long()).view(image.shape)


def _sharpen(image: Tensor, factor: float, wrapping: bool) -> Tensor:
    """``factor`` times the way from the blurred picture to it; its border of one pixel stays."""
    if min(image.shape[-2:]) < 3:
        return image
    values = image.float()
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = values[..., 1:-1, 1:-1]
    blurred = (box + 4 * inner).div_(13).round_()
    sharp = blurred + factor * (inner - blurred)
    if not wrapping:
        sharp = sharp.clamp_(0, 255)
    out = image.clone()
    out[..., 1:-1, 1:-1] = sharp.to(torch.int32).to(torch.uint8)  # the second cast wraps around
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


def warp(images: Tensor, matrix: Matrix) -> Tensor:
    """uint8 [..., 3, H, W] of ``images`` under the affine map ``matrix``; FILL comes in from
    outside. One picture on the host, or any number of them where they are."""
    if images.device.type == "cpu" and images.ndim == 3:
        return _warp_one(images, matrix)
    return _warp_many(images, matrix)


def _sources(matrix: Matrix, height: int, width: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For x and y, what a row [H, 1] and a column [W] add to where a pixel comes from."""
    a, b, c, d, e, f = _inverse(matrix)
    return tuple(
        (
            _fixed(row * np.arange(height)[:, None] + shift) + 16,
            _fixed(column * np.arange(width)),
        )
        for row, column, shift in ((b, a, c), (e, d, f))
    )


def _warp_many(images: Tensor, matrix: Matrix) -> Tensor:
    height, width = images.shape[-2:]
    sources = [part for pair in _sources(matrix, height, width) for part in pair]
    flat_parts = sent(np.concatenate([part.ravel() for part in sources]), images.device)
    parts = flat_parts.split([part.size for part in sources])
    row_x, column_x, row_y, column_y = (
        part.view(source.shape) for part, source in zip(parts, sources, strict=True)
    )
    x, y = (row_x + column_x) >> 5, (row_y + column_y) >> 5
    left, top, right, low = x >> 5, y >> 5, x & 31, y & 31
    padded = images.new_full((*images.shape[:-2], height + 2, width + 2), FILL)
    padded[..., 1:-1, 1:-1] = images
    flat = padded.flatten(-2)
    total = torch.full((*images.shape[:-2], height * width), 512, device=images.device).int()
    columns = [(left + shift).clamp(0, width + 1) for shift in (1, 2)]
    for shift, vertical in ((1, 32 - low), (2, low)):
        row = (top + shift).clamp(0, height + 1) * (width + 2)
        for column, horizontal in zip(columns, (32 - right, right), strict=True):
            taken = flat.index_select(-1, (row + column).flatten()).int()
            total += taken * (vertical * horizontal).flatten()
    return (total >> 10).to(torch.uint8).view(images.shape)


def _warp_one(image: Tensor, matrix: Matrix) -> Tensor:
    height, width = image.shape[-2:]
    x, y = ((row + column) >> 5 for row, column in _sources(matrix, height, width))
    left, top, right, low = x >> 5, y >> 5, x & 31, y & 31
    # Channels in lanes of 20 bits: one look-up and one product for all three.
    red, green, blue = image.numpy().astype(np.int64)
    packed = np.full((height + 2, width + 2), FILL * ONES)
    packed[1:-1, 1:-1] = red | green << 20 | blue << 40
    total = np.full((height, width), 512 * ONES)
    columns = [np.clip(left + shift, 0, width + 1) for shift in (1, 2)]
    for shift, vertical in ((1, 32 - low), (2, low)):
        if not vertical.any():  # shear along x, translation
            continue
        row = np.clip(top + shift, 0, height + 1) * (width + 2)
        for column, horizontal in zip(columns, (32 - right, right), strict=True):
            if not horizontal.any():
                continue
            total += packed.ravel().take(row + column) * (vertical * horizontal)
    lanes = [(total >> shift).astype(np.uint8) for shift in (10, 30, 50)]
    return torch.from_numpy(np.stack(lanes))


def _fixed(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 1024).astype(np.int32)
