"""Referring expressions for things in scenes (grounding), in the format of ALBEF's lists.

An expression names a thing by one attribute that no other thing of the scene has. Its picture has
the same number of proposals as every other: one near each thing, and boxes around nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from itr.data.scenes.known_scenes import KnownScene, color, fill, shape, size
from itr.data.scenes.render import OUTLINES, SIDE, STROKE
from itr.data.scenes.world import RADII, SHAPES, Scene, Thing

PROPOSALS = 8  # of each picture; a random choice among them is right one time in eight
JITTER = 0.08  # largest shift of a proposal's sides, as a share of the thing's extent
OVERLAP = 0.3  # largest IoU of a proposal around nothing with a thing
LARGEST_RANDOM, SMALLEST_RANDOM = 0.55, 0.2  # sides of such a proposal, as shares of the picture
CIRCLE = 0.92  # radius of a circle, as a share of that of other shapes
SPLIT_FILES = {"train": "grounding_train.json", "val": "grounding_val.json"}
TEST_FILE = "grounding_test.json"
Box = list[float]


def write_expressions(scenes: dict[str, list[KnownScene]], seed: Sequence[int]) -> dict[str, Any]:
    """File name -> content: expressions, references, objects and proposals."""
    lists: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    refs: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    detections: dict[str, list[Box]] = {}
    for stream, (split, known) in enumerate(scenes.items()):
        rng = np.random.default_rng([*seed, stream])
        for entry in known:
            image = {"id": entry.number, "file_name": entry.file.rsplit("/", 1)[-1]}
            images.append({**image, "width": SIDE, "height": SIDE})
            boxes = [extent(thing) for thing in entry.scene]
            detections[str(entry.number)] = draw_proposals(boxes, rng)
            for index, (thing, box) in enumerate(zip(entry.scene, boxes, strict=True)):
                number = 10 * entry.number + index
                annotations.append({"id": number, "image_id": entry.number, "bbox": box})
                texts = list(expressions_of(thing, entry.scene))
                part = split if split != "test" else "testA" if fill(thing) == "solid" else "testB"
                refs.append(
                    {
                        "ref_id": number,
                        "ann_id": number,
                        "image_id": entry.number,
                        "split": part,
                        "sentences": [{"sent": text} for text in texts],
                    }
                )
                lists[split] += [
                    {"image": entry.file, "text": text, "ref_id": number} for text in texts
                ]
    return {
        **{f"grounding_{split}.json": rows for split, rows in lists.items()},
        "refs.json": refs,
        "instances.json": {"images": images, "annotations": annotations},
        "dets.json": detections,
    }


def expressions_of(thing: Thing, scene: Scene) -> Iterator[str]:
    """The shortest expressions that are true of ``thing`` alone."""
    for attribute in (color, shape, size, fill):
        value = attribute(thing)
        if sum(attribute(other) == value for other in scene) == 1:
            yield f"the {value}" if attribute is shape else f"the {value} thing"


def extent(thing: Thing) -> Box:
    """The box around a thing, in pixels: x, y, width, height."""
    radius = RADII[thing.size] * SIDE
    name = SHAPES[thing.shape]
    corners = np.array(OUTLINES.get(name, [(-CIRCLE, -CIRCLE), (CIRCLE, CIRCLE)])) * radius
    is_line = fill(thing) == "hollow" and name != "circle"  # drawn along the outline, not inside
    stroke = STROKE * SIDE / 2 if is_line else 0.0
    low, high = corners.min(axis=0) - stroke, corners.max(axis=0) + stroke
    x, y = thing.x * SIDE + low[0], thing.y * SIDE + low[1]
    return _rounded(x, y, high[0] - low[0], high[1] - low[1])


def draw_proposals(things: Sequence[Box], rng: np.random.Generator) -> list[Box]:
    """`PROPOSALS` boxes in random order: one near each thing, the others around none."""
    boxes = [_jittered(box, rng) for box in things]
    while len(boxes) < PROPOSALS:
        width, height = rng.uniform(SMALLEST_RANDOM * SIDE, LARGEST_RANDOM * SIDE, 2).tolist()
        x, y = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
        box = _rounded(x, y, width, height)
        if all(_iou(box, thing) <= OVERLAP for thing in things):
            boxes.append(box)
    return [boxes[index] for index in rng.permutation(len(boxes))]


def _jittered(box: Box, rng: np.random.Generator) -> Box:
    x, y, width, height = box
    left, right = rng.uniform(-JITTER, JITTER, 2) * width
    top, bottom = rng.uniform(-JITTER, JITTER, 2) * height
    return _rounded(x + left, y + top, width + right - left, height + bottom - top)


def _rounded(*values: float) -> Box:
    return [round(float(value), 2) for value in values]


def _iou(first: Box, second: Box) -> float:
    sides = [
        min(first[axis] + first[axis + 2], second[axis] + second[axis + 2])
        - max(first[axis], second[axis])
        for axis in (0, 1)
    ]
    inside = max(0.0, sides[0]) * max(0.0, sides[1])
    return inside / (first[2] * first[3] + second[2] * second[3] - inside)
