"""The scenes of a generated dataset, read back with what is true of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.scenes.grammar import ABOVE, BELOW, LEFT, RIGHT
from itr.data.scenes.world import COLORS, FILLS, QUADRANTS, SHAPES, SIZES, Scene, Thing
from itr.errors import DataError
from itr.files import parse_json

SPLITS = ("train", "val", "test")
RELATIONS = (LEFT[0], RIGHT[0], ABOVE[0], BELOW[0])


@dataclass(frozen=True)
class KnownScene:
    """A scene and its picture, ``file`` below the folder of the dataset."""

    file: str
    scene: Scene

    @property
    def number(self) -> int:
        """Its number over all splits."""
        return int(Path(self.file).stem)


def read_scenes(folder: Path) -> dict[str, list[KnownScene]]:
    """The scenes of each split. Raises DataError if the annotations cannot be read."""
    path = folder / "dataset_scenes.json"
    try:
        images = parse_json(path.read_text(encoding="utf-8"))["images"]
        splits: dict[str, list[KnownScene]] = {split: [] for split in SPLITS}
        for image in images:
            scene = tuple(_thing(words) for words in image["things"])
            file = f"{image['filepath']}/{image['filename']}"
            splits[image["split"]].append(KnownScene(file, scene))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error!r}); {folder} is not a complete scenes dataset. "
            "Remove the folder to generate it again"
        ) from error
    return splits


def _thing(words: dict[str, Any]) -> Thing:
    return Thing(
        COLORS.index(words["colour"]),
        SHAPES.index(words["shape"]),
        SIZES.index(words["size"]),
        FILLS.index(words["fill"]),
        QUADRANTS.index(words["place"]),
        words["x"],
        words["y"],
    )


def color(thing: Thing) -> str:
    """The color of a thing. In a scene, no two things have the same."""
    return COLORS[thing.color]


def shape(thing: Thing) -> str:
    """The shape of a thing. In a scene, no two things have the same."""
    return SHAPES[thing.shape]


def fill(thing: Thing) -> str:
    """``solid`` or ``hollow``."""
    return FILLS[thing.fill]


def size(thing: Thing) -> str:
    """``small``, ``medium`` or ``large``."""
    return SIZES[thing.size]


def place(thing: Thing) -> str:
    """The quarter of the picture."""
    return QUADRANTS[thing.quadrant]


def relations(first: Thing, second: Thing) -> Iterator[tuple[str, bool]]:
    """The relations that ``first`` clearly has to ``second`` (True), and their opposites (False).

    Of two things in the same column, neither is left or right of the other.
    """
    for before, after, difference in (
        (LEFT[0], RIGHT[0], second.column - first.column),
        (ABOVE[0], BELOW[0], second.row - first.row),
    ):
        if difference:
            yield before, difference > 0
            yield after, difference < 0
