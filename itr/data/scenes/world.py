"""What a scene is: two to four things, each in a quarter of the picture; groups of near-misses.

The scenes of a group hold the same colours, shapes, sizes, fills and places and differ only in
which goes with which: a bag of attributes cannot tell them apart, "the red one is the square" can.
Groups are small, so that a model which sees no more than bags learns something first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
SIZES = ("small", "medium", "large")
FILLS = ("solid", "hollow")
PLACES = ("top left", "top right", "bottom left", "bottom right")

RADII = (0.12, 0.165, 0.215)  # of a thing by size, as a share of the picture's width
COUNTS, COUNT_SHARES = (2, 3, 4), (0.2, 0.4, 0.4)
GROUPS = (1, 1, 2)  # scenes of a group, drawn from these
TRIES = 50  # draws of a binding, after which a group stays smaller


@dataclass(frozen=True, slots=True)
class Thing:
    """Its attributes as indices into the tuples above, and its centre (shares of the width)."""

    colour: int
    shape: int
    size: int
    fill: int
    place: int
    x: float
    y: float

    @property
    def column(self) -> int:
        """0 left, 1 right."""
        return self.place % 2

    @property
    def row(self) -> int:
        """0 top, 1 bottom."""
        return self.place // 2


def describe(thing: Thing) -> dict[str, str | float]:
    """``thing`` in words, for a file."""
    return {
        "colour": COLOURS[thing.colour],
        "shape": SHAPES[thing.shape],
        "size": SIZES[thing.size],
        "fill": FILLS[thing.fill],
        "place": PLACES[thing.place],
        "x": round(thing.x, 4),
        "y": round(thing.y, 4),
    }


Scene = tuple[Thing, ...]
Bag = tuple[tuple[int, ...], ...]  # colours, shapes, sizes, fills, places, each sorted


def draw_scenes(number: int, rng: np.random.Generator, taken: set[Bag]) -> list[Scene]:
    """``number`` different scenes in random order; their bags are new to ``taken`` and added."""
    scenes: list[Scene] = []
    while len(scenes) < number:
        bag = _draw_bag(rng)
        if bag not in taken:
            taken.add(bag)
            size = int(rng.choice(GROUPS))
            scenes += islice(_bindings(bag, rng), min(size, number - len(scenes)))
    return [scenes[index] for index in rng.permutation(number)]


def _draw_bag(rng: np.random.Generator) -> Bag:
    count = int(rng.choice(COUNTS, p=COUNT_SHARES))
    drawn = (
        rng.choice(len(COLOURS), count, replace=False),
        rng.choice(len(SHAPES), count, replace=False),
        rng.choice(len(SIZES), count),
        rng.choice(len(FILLS), count),
        rng.choice(len(PLACES), count, replace=False),
    )
    return tuple(tuple(sorted(values.tolist())) for values in drawn)


def _bindings(bag: Bag, rng: np.random.Generator) -> Iterator[Scene]:
    """Different scenes with the attributes of ``bag``, as long as they are easily found."""
    seen = set()
    for _ in range(TRIES):
        colours, *others = bag
        bound = tuple(zip(colours, *(rng.permutation(v).tolist() for v in others), strict=True))
        if bound not in seen:
            seen.add(bound)
            yield tuple(_place(attributes, rng) for attributes in bound)


def _place(attributes: tuple[int, ...], rng: np.random.Generator) -> Thing:
    colour, shape, size, fill, place = attributes
    room = 0.25 - RADII[size] - 0.01  # within its quarter of the picture
    x, y = (0.25 + 0.5 * side + room * rng.uniform(-1, 1) for side in (place % 2, place // 2))
    return Thing(colour, shape, size, fill, place, x, y)
