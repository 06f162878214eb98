"""From a map of evidence to a box, and the measures of grounding.

H, W height and width of an image, g side of a map, P proposals. A box is (x, y, width, height) in
pixels of the image, as in COCO's annotations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from itr.data.items import Box

CORRECT_IOU = 0.5
AREA_POWER = 0.5  # of a box; its evidence is divided by the area to this power
BOX_THRESHOLD = 0.5  # share of the map's maximum
WINDOW_SHARES = (0.15, 0.2, 0.27, 0.36, 0.48, 0.64, 0.85, 1.0)  # of the image's width and height
WINDOW_STEP = 0.25  # distance between windows of a size, as a share of that size


class ChosenBox(NamedTuple):
    """The box of an expression."""

    box: Box
    without_evidence: bool  # no proposal had a positive score: the fallback was used


def upsample(evidence: Tensor | np.ndarray, height: int, width: int) -> np.ndarray:
    """The map ``evidence`` [g, g] at the size of the image, bicubic; float32 [H, W]."""
    values = torch.as_tensor(evidence, dtype=torch.float32)[None, None]
    resized = F.interpolate(values, (height, width), mode="bicubic", align_corners=False)
    return resized[0, 0].numpy()


def box_scores(evidence: np.ndarray, boxes: Sequence[Box] | np.ndarray) -> np.ndarray:
    """The score of each proposal, float64 [P]: evidence inside / sqrt(true area).

    ``evidence`` [H, W]. A box covers the rows int(y) to int(y + height) and the columns int(x) to
    int(x + width), as in ALBEF's code. A part outside the image has no evidence.
    """
    rows, columns = evidence.shape
    x, y, w, h = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    left, right = (np.clip(np.trunc(v), 0, columns).astype(np.int64) for v in (x, x + w))
    top, bottom = (np.clip(np.trunc(v), 0, rows).astype(np.int64) for v in (y, y + h))
    right, bottom = np.maximum(left, right), np.maximum(top, bottom)
    sums = np.zeros((rows + 1, columns + 1))
    np.cumsum(np.cumsum(evidence, axis=0, dtype=np.float64), axis=1, out=sums[1:, 1:])
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    # Rounding of the cumulative sums must not become evidence.
    inside[np.abs(inside) <= 1e-12 * np.abs(sums).max()] = 0.0
    area = w * h
    return np.divide(inside, area**AREA_POWER, out=np.zeros_like(inside), where=area > 0)


def choose_box(
    scores: np.ndarray, boxes: Sequence[Box], fallback: str, previous: Box | None = None
) -> ChosenBox:
    """The proposal with the highest positive score, the first one of equals.

    Args:
        scores: [P], at least one.
        boxes: the proposals [P].
        fallback: if no score is positive: ``largest`` takes the proposal with the largest area,
            ``previous``, as in ALBEF's code, the box of the expression before.
        previous: that box; None for the first expression, which takes the largest proposal.
    """
    best = int(np.argmax(scores))
    if scores[best] > 0:
        return ChosenBox(boxes[best], without_evidence=False)
    if fallback == "previous" and previous is not None:
        return ChosenBox(previous, without_evidence=True)
    return ChosenBox(max(boxes, key=lambda box: box[2] * box[3]), without_evidence=True)


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union as RefCOCO's evaluator computes it.

    The last pixel of a box is part of it, so that the sides of an intersection are 1 longer than
    the distance of its corners.
    """
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right = min(first[0] + first[2], second[0] + second[2]) - 1
    bottom = min(first[1] + first[3], second[1] + second[3]) - 1
    inside = 0.0
    if left < right and top < bottom:
        inside = (right - left + 1) * (bottom - top + 1)
    union = first[2] * first[3] + second[2] * second[3] - inside
    return inside / union if union > 0 else 0.0


# Without proposals


def points_inside(evidence: np.ndarray, box: Box) -> bool:
    """The pointing game: whether the maximum of the map [H, W] is inside ``box``.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016.
    """
    row, column = divmod(int(np.argmax(evidence)), evidence.shape[1])
    x, y, w, h = box
    return x <= column + 0.5 < x + w and y <= row + 0.5 < y + h


def box_of_map(evidence: np.ndarray, threshold: float = BOX_THRESHOLD) -> ChosenBox:
    """The extent of the largest connected region of a map [H, W] above ``threshold``.

    ``threshold`` is a share of the maximum. A map without positive evidence gives the whole image.
    """
    height, width = evidence.shape
    peak = float(evidence.max())
    if not peak > 0:
        return ChosenBox((0.0, 0.0, float(width), float(height)), without_evidence=True)
    regions, _ = ndimage.label(evidence >= threshold * peak)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    rows, columns = ndimage.find_objects(regions)[int(sizes.argmax()) - 1]
    x, y = float(columns.start), float(rows.start)
    return ChosenBox((x, y, columns.stop - x, rows.stop - y), without_evidence=False)


@functools.lru_cache(maxsize=256)
def window_grid(height: int, width: int) -> tuple[Box, ...]:
    """Windows of several sizes and shapes that cover an image, as proposals."""
    return tuple(
        (x, y, w * width, h * height)
        for w in WINDOW_SHARES
        for h in WINDOW_SHARES
        for x in _starts(w, width)
        for y in _starts(h, height)
    )


def _starts(share: float, side: int) -> Iterator[float]:
    """Where windows that take ``share`` of ``side`` start, evenly spaced."""
    steps = math.ceil((1 - share) / (WINDOW_STEP * share))
    for step in range(steps + 1):
        yield (1 - share) * side * step / max(1, steps)
