"""Reader of ALBEF's annotation lists: ``<name>_train.json``, ``_val``, ``_test``, one list each.

A training item is an image with one caption, an evaluation item one with a list of captions; items
of the same ``image`` are one record, in the order of their first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from itr.data.annotations import kind, load_json, place_pictures, text_in
from itr.data.karpathy import ALIASES, FILE_NAMES
from itr.data.records import Record, Split
from itr.errors import DataError

FOLDERS = ("", "data", "annotations")  # below data.root


def find_list(root: Path, name: str, split: str) -> Path | None:
    """The list of ``split``, as it or other layouts call it; None: there is none."""
    for folder in FOLDERS:
        for known in dict.fromkeys((name, FILE_NAMES.get(name, name))):
            for part in (split, ALIASES.get(split, split)):
                if (path := root / folder / f"{known}_{part}.json").is_file():
                    return path
    return None


def read_list(path: Path, split: str, pictures: str | None = None) -> Split:
    """The split in ``path``; no picture is opened.

    ``pictures`` is the folder that the items' ``image`` is relative to (None: found by looking).
    Raises DataError that names the file and item for anything that cannot be used.
    """
    items = load_json(path)
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: is {kind(items)}; expected a list of items with image, caption")
    captions: dict[str, list[tuple[int, str]]] = {}
    ids: dict[str, int] = {}
    number = 0
    for place, item in enumerate(items):
        where = f"{path}: [{place}]"
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, found {kind(item)}")
        image = text_in(where, item, "image")
        ids.setdefault(image, _image_id(item, len(ids)))
        for caption in _captions(where, item):
            captions.setdefault(image, []).append((number, caption))
            number += 1
    records = [
        Record(ids[image], image, tuple(t for _, t in own), tuple(n for n, _ in own))
        for image, own in captions.items()
    ]
    return Split(split, "lists", place_pictures(path, records, pictures), source=str(path))


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


def _image_id(item: dict[str, Any], default: int) -> int:
    """COCO's id, which ends the file's name (COCO_val2014_000000391895.jpg), or a running one."""
    match = re.search(r"COCO_\w+?_0*(\d+)\.", str(item["image"]))
    return int(match.group(1)) if match else default
