"""Reader for ALBEF's annotation lists: ``<name>_train.json``, ``<name>_val.json``, ...

A training item is an image with one caption, an evaluation item an image with a list of captions.
Items with the same ``image`` form one record, in the order in which images first occur.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.ids import number_ids, require_id
from itr.data.layout import LayoutSpec, coco_id, data_root, find_dataset_files
from itr.data.layouts.json_annotations import (
    describe_value,
    load_json,
    require_text,
    require_unique_images,
    resolve_image_paths,
)
from itr.data.records import Record, Split
from itr.data.splits import PATTERN, resolve_split
from itr.errors import DataError

FOLDERS = ("", "data", "annotations", "albef")  # below data.root
# The excluded prefixes are those of COCO's and Karpathy's files, which have other contents.
FILE_NAME = re.compile(
    rf"(?P<name>(?!captions_|instances_|person_|dataset_).+)_(?P<split>{PATTERN})\.json",
    re.IGNORECASE,
)
LAYOUT = LayoutSpec("lists", "pixels", 2, "{name}_train.json (ALBEF lists)")


@dataclass(frozen=True)
class AlbefListsLayout:
    """The lists of a dataset; ``images`` is the folder that image paths are relative to."""

    path: Path
    files: dict[str, Path]
    images: str | None = None
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    name: str = "lists"
    kind: str = "pixels"

    def splits(self) -> list[str]:
        """The splits that have a list."""
        return list(self.files)

    def read(self, split: str) -> Split:
        """Read one list. Opens no image."""
        key = resolve_split(split, list(self.files), str(self.path))
        path = self.files[key]
        records, id_notes = _read_records(path)
        notes = list(id_notes)
        return Split(
            key,
            self.name,
            resolve_image_paths(path, records, self.images, notes=notes),
            decoder=self.decoder,
            source=str(path),
            notes=(*self.notes, *notes),
        )


def find(data: DataConfig) -> AlbefListsLayout | None:
    """The lists of the dataset below ``data.root``, or None."""
    root = data_root(data)
    files = find_dataset_files([root / folder for folder in FOLDERS], FILE_NAME, data.name)
    if files is None:
        return None
    return AlbefListsLayout(files.folder, files.by_split, data.images, data.decoder, files.notes)


def _read_records(path: Path) -> tuple[list[Record], tuple[str, ...]]:
    """The records of a list, and notes about its ids."""
    items = load_json(path)
    if not isinstance(items, list) or not items:
        raise DataError(
            f"{path}: holds {describe_value(items)}; expected a list of items with 'image' and "
            "'caption'"
        )
    captions: dict[str, list[tuple[int, str]]] = {}
    ids: dict[str, Any] = {}
    first_entries: dict[str, str] = {}
    caption_id = 0
    for index, item in enumerate(items):
        where = f"{path}: [{index}]"
        if not isinstance(item, dict):
            raise DataError(f"{where}: is {describe_value(item)}; expected an object")
        image = require_text(where, item, "image")
        ids.setdefault(image, _image_id(where, item, image))
        first_entries.setdefault(image, where)
        of_image = captions.setdefault(image, [])
        for caption in _parse_captions(where, item):
            of_image.append((caption_id, caption))
            caption_id += 1
    places = [first_entries[image] for image in captions]
    numbered = number_ids([ids[image] for image in captions], places, "image")
    records = [
        Record(
            numbered.numbers[index],
            image,
            tuple(text for _, text in pairs),
            tuple(number for number, _ in pairs),
            numbered.extra(index),
        )
        for index, (image, pairs) in enumerate(captions.items())
    ]
    require_unique_images((first_entries[str(record.image)], "", record) for record in records)
    return records, numbered.notes


def _parse_captions(where: str, item: dict[str, Any]) -> list[str]:
    value = item.get("caption")
    captions = []
    for caption in value if isinstance(value, list) else [value]:
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(
                f"{where}: 'caption' is {describe_value(caption)}; expected text or a list of texts"
            )
        captions.append(caption.strip())
    return captions


def _image_id(where: str, item: dict[str, Any], image: str) -> Any:
    """The COCO id in the file name; otherwise ``image_id`` of the item, if it has one."""
    from_name = coco_id(image)
    return require_id(where, "image_id", item.get("image_id")) if from_name is None else from_name
