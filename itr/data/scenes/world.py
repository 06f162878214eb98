"""Scenes: two to four things, each in its quadrant of the image, in groups of near-duplicates.

The scenes of a group have the same colors, shapes, sizes, fills and quadrants, and differ only in
how these are combined: a bag of attributes cannot distinguish them, but "the red one is the square"
can. Groups are small, so that a model that sees only bags of attributes still learns something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
SIZES = ("small", "medium", "large")
FILLS = ("solid", "hollow")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")

RADII = (0.12, 0.165, 0.215)  # of a thing by size, as a fraction of the image width
COUNTS, COUNT_SHARES = (2, 3, 4), (0.2, 0.4, 0.4)
GROUPS = (1, 1, 2)  # sizes of groups
TRIES = 50  # attempts per group; it stays smaller if they are used up


@dataclass(frozen=True, slots=True)
class Thing:
    """Attributes as indices into the tuples above, and the center as fractions of the width."""

    color: int
    shape: int
    size: int
    fill: int
    quadrant: int
    x: float
    y: float

    @property
    def column(self) -> int:
        """0 left, 1 right."""
        return self.quadrant % 2

    @property
    def row(self) -> int:
        """0 top, 1 bottom."""
        return self.quadrant // 2


def describe(thing: Thing) -> dict[str, str | float]:
    """The attributes of ``thing`` in words, as written to the annotations."""
    return {
        "colour": COLORS[thing.color],
        "shape": SHAPES[thing.shape],
        "size": SIZES[thing.size],
        "fill": FILLS[thing.fill],
        "place": QUADRANTS[thing.quadrant],
        "x": round(thing.x, 4),
        "y": round(thing.y, 4),
    }


Scene = tuple[Thing, ...]
Bag = tuple[tuple[int, ...], ...]  # colors, shapes, sizes, fills, quadrants, each sorted


def draw_scenes(number: int, rng: np.random.Generator, used: set[Bag]) -> list[Scene]:
    """``number`` different scenes in random order.

    Their bags are not in ``used`` yet and are added to it.
    """
    scenes: list[Scene] = []
    while len(scenes) < number:
        bag = _draw_bag(rng)
        if bag not in used:
            used.add(bag)
            size = int(rng.choice(GROUPS))
            scenes += islice(_bindings(bag, rng), min(size, number - len(scenes)))
    return [scenes[index] for index in rng.permutation(number)]


def _draw_bag(rng: np.random.Generator) -> Bag:
    count = int(rng.choice(COUNTS, p=COUNT_SHARES))
    drawn = (
        rng.choice(len(COLORS), count, replace=False),
        rng.choice(len(SHAPES), count, replace=False),
        rng.choice(len(SIZES), count),
        rng.choice(len(FILLS), count),
        rng.choice(len(QUADRANTS), count, replace=False),
    )
    return tuple(tuple(sorted(values.tolist())) for values in drawn)


def _bindings(bag: Bag, rng: np.random.Generator) -> Iterator[Scene]:
    """Different scenes with the attributes of ``bag``, up to `TRIES` attempts."""
    seen = set()
    for _ in range(TRIES):
        colors, *others = bag
        bound = tuple(zip(colors, *(rng.permutation(v).tolist() for v in others), strict=True))
        if bound not in seen:
            seen.add(bound)
            yield tuple(_position(attributes, rng) for attributes in bound)


def _position(attributes: tuple[int, ...], rng: np.random.Generator) -> Thing:
    color, shape, size, fill, quadrant = attributes
    room = 0.25 - RADII[size] - 0.01  # within its quadrant of the image
    x, y = (0.25 + 0.5 * side + room * rng.uniform(-1, 1) for side in (quadrant % 2, quadrant // 2))
    return Thing(color, shape, size, fill, quadrant, x, y)
