"""Renders a scene as a JPEG image and as an array of region features."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from itr.data.scenes.world import COLORS, FILLS, QUADRANTS, RADII, SHAPES, SIZES, Scene, Thing

SIDE = 112  # pixels
OVERSAMPLED = 3  # drawn larger by this factor, then reduced: smooth edges
STROKE = 0.035  # of a hollow thing, as a fraction of the image width
RGB = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (40, 60, 220),
    "yellow": (245, 215, 30),
    "orange": (250, 135, 20),
    "purple": (130, 40, 170),
    "pink": (250, 140, 190),
    "brown": (120, 70, 30),
    "black": (20, 20, 20),
    "cyan": (40, 200, 215),
}

REGIONS = 36  # per image, as in published region features
WIDTH = 128  # of a region feature
PER_THING = (1, 2)  # regions of a thing: minimum, maximum
BLENDS = 0.1  # fraction of the distractors that cover two things
NOISE = 0.5  # standard deviation; that of an attribute vector is 0.5
CLUTTER = 1.3  # weight of the attributes of a distractor that is not in the scene


def draw_image(scene: Scene, rng: np.random.Generator) -> bytes:
    """``scene`` as a JPEG, on a light background of random shade."""
    side = SIDE * OVERSAMPLED
    background = tuple(rng.integers(225, 256, 3).tolist())
    image = Image.new("RGB", (side, side), background)
    pen = ImageDraw.Draw(image)
    for thing in scene:
        _draw_thing(pen, thing, side, background)
    file = io.BytesIO()
    image.reduce(OVERSAMPLED).save(file, "JPEG", quality=90)
    return file.getvalue()


def _draw_thing(
    pen: ImageDraw.ImageDraw, thing: Thing, side: int, background: tuple[int, ...]
) -> None:
    color = RGB[COLORS[thing.color]]
    hollow = FILLS[thing.fill] == "hollow"
    center = (thing.x * side, thing.y * side)
    radius, stroke = RADII[thing.size] * side, round(STROKE * side)
    if SHAPES[thing.shape] == "circle":
        pen.circle(center, 0.92 * radius, background if hollow else color, color, stroke)
        return
    corners = [
        (center[0] + radius * x, center[1] + radius * y) for x, y in OUTLINES[SHAPES[thing.shape]]
    ]
    if hollow:
        pen.line([*corners, *corners[:2]], color, stroke, joint="curve")
    else:
        pen.polygon(corners, color)


def _ring(corners: int, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
    """Corners on a circle from the top on, clockwise, at ``radii`` in turn."""
    angles = [2 * math.pi * corner / corners for corner in range(corners)]
    return [
        (radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a))
        for i, a in enumerate(angles)
    ]


ARM = 0.33  # half the width of a cross's arm
OUTLINES = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(x, y + 0.15) for x, y in _ring(3)],
    "star": _ring(10, (1.0, 0.45)),
    "diamond": [(0.0, -1.0), (0.65, 0.0), (0.0, 1.0), (-0.65, 0.0)],
    "cross": [
        *((-ARM, -1.0), (ARM, -1.0), (ARM, -ARM), (1.0, -ARM), (1.0, ARM), (ARM, ARM)),
        *((ARM, 1.0), (-ARM, 1.0), (-ARM, ARM), (-1.0, ARM), (-1.0, -ARM), (-ARM, -ARM)),
    ],
}


class RegionViewer:
    """Region features: a fixed random projection of attributes, noise, and distractors.

    Most regions are distractors: clutter with random attributes, marked as background. The mean
    region therefore says little about the scene; a model has to learn to ignore the clutter.

    The projection is drawn once for the dataset: a color has the same direction in all splits.
    Regions are sums of vectors, not matrix products: without BLAS the bytes do not depend on the
    machine.
    """

    def __init__(self, rng: np.random.Generator):
        kinds = (COLORS, SHAPES, SIZES, FILLS, QUADRANTS)
        self.tables = [rng.normal(0, 0.5, (len(kind), WIDTH)) for kind in kinds]
        self.axes = rng.normal(0, 0.5, (2, WIDTH))
        self.marks = rng.normal(0, 0.5, (2, WIDTH))  # of a thing, of background

    def draw_regions(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """The regions of ``scene`` in random order, float32 [REGIONS, WIDTH]."""
        things = np.stack([self._vector(thing) for thing in scene])
        rows = np.repeat(things, rng.integers(*PER_THING, len(scene), endpoint=True), axis=0)
        distractors = [self._distractor(things, rng) for _ in range(REGIONS - len(rows))]
        regions = np.concatenate([rows, np.stack(distractors)])
        regions += rng.normal(0, NOISE, regions.shape)
        return regions[rng.permutation(REGIONS)].astype(np.float32)

    def _vector(self, thing: Thing) -> np.ndarray:
        attributes = (thing.color, thing.shape, thing.size, thing.fill, thing.quadrant)
        where = (thing.x - 0.5) * self.axes[0] + (thing.y - 0.5) * self.axes[1]
        vectors = [table[a] for table, a in zip(self.tables, attributes, strict=True)]
        return np.sum([*vectors, where, self.marks[0]], axis=0)

    def _distractor(self, things: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < BLENDS:
            first, second = rng.choice(len(things), 2, replace=False)
            return (things[first] + things[second]) / 2
        picked = [table[rng.integers(len(table))] for table in self.tables]
        return CLUTTER * np.sum(picked, axis=0) + self.marks[1]
