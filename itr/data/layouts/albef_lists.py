"""Reader of ALBEF's annotation lists: ``<name>_train.json``, ``_val``, ``_test``, one list each.

A training item is an image with one caption, an evaluation item one with a list of captions; items
of the same ``image`` are one record, in the order of their first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.layout import coco_id, find_files, root_of, split_in
from itr.data.layouts.json_annotations import (
    kind,
    load_json,
    place_pictures,
    require_apart,
    text_in,
)
from itr.data.records import SEQUENTIAL_ID, Record, Split
from itr.errors import DataError

FOLDERS = ("", "data", "annotations", "albef")  # below data.root
# COCO's own files are called alike, and hold other things.
NAMES = re.compile(
    r"(?P<name>(?!captions_|instances_|person_|dataset_).+)_(?P<split>train|val|dev|test)\.json"
)


@dataclass(frozen=True)
class Lists:
    """The lists of a data set; ``pictures`` is the folder that ``image`` is relative to."""

    path: Path
    files: dict[str, Path]
    pictures: str | None = None
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    layout: str = "lists"
    holds: str = "pixels"

    def splits(self) -> list[str]:
        """Those of which there is a list."""
        return list(self.files)

    def read(self, split: str) -> Split:
        """One list; no picture is opened."""
        name = split_in(split, list(self.files), str(self.path))
        path = self.files[name]
        placed = place_pictures(path, _records(path), self.pictures)
        return Split(
            name, self.layout, placed, decoder=self.decoder, source=str(path), notes=self.notes
        )


def find(data: DataConfig) -> Lists | None:
    """The lists of the data set below ``data.root``; None: there are none."""
    root = root_of(data)
    found = find_files([root / folder for folder in FOLDERS], NAMES, data.name)
    if found is None:
        return None
    return Lists(found.folder, found.by_split, data.images, data.decoder, found.notes)


def _records(path: Path) -> list[Record]:
    items = load_json(path)
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: is {kind(items)}; expected a list of items with image, caption")
    captions: dict[str, list[tuple[int, str]]] = {}
    ids: dict[str, int | None] = {}
    firsts: dict[str, str] = {}
    number = 0
    for place, item in enumerate(items):
        where = f"{path}: [{place}]"
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, found {kind(item)}")
        image = text_in(where, item, "image")
        ids.setdefault(image, _image_id(item, image))
        firsts.setdefault(image, where)
        for caption in _captions(where, item):
            captions.setdefault(image, []).append((number, caption))
            number += 1
    records = [
        _record(image, ids[image], place, own)
        for place, (image, own) in enumerate(captions.items())
    ]
    require_apart((firsts[str(record.image)], "", record) for record in records)
    return records


def _record(image: str, own_id: int | None, place: int, captions: list[tuple[int, str]]) -> Record:
    """The ``place``-th image, whose id is its place where it has none."""
    texts, numbers = tuple(text for _, text in captions), tuple(number for number, _ in captions)
    if own_id is None:
        return Record(place, image, texts, numbers, {SEQUENTIAL_ID: True})
    return Record(own_id, image, texts, numbers)


def _captions(where: str, item: dict[str, Any]) -> list[str]:
    found = item.get("caption")
    captions = []
    for caption in found if isinstance(found, list) and found else [found]:
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(
                f"{where}: 'caption' is {kind(caption)}; expected text, or a list of it"
            )
        captions.append(caption.strip())
    return captions


def _image_id(item: dict[str, Any], image: str) -> int | None:
    """COCO's id, which the file's name ends with; the item's, if it is a number."""
    own = item.get("image_id")
    named = coco_id(image)
    if named is not None:
        return named
    return own if isinstance(own, int) and not isinstance(own, bool) else None
