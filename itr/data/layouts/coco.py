"""Reader for COCO caption files: ``captions_<split><year>.json`` beside folders of images.

A file has two lists: ``images`` (``id``, ``file_name``) and ``annotations`` (``id``, ``image_id``,
``caption``). Images keep the order of the first list, their captions the order of the second.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.ids import id_key, is_missing, number_ids, require_id
from itr.data.layout import LayoutSpec, data_root
from itr.data.layouts.json_annotations import (
    describe_value,
    load_json,
    require_text,
    require_unique_images,
    resolve_image_paths,
)
from itr.data.records import Record, Split
from itr.data.splits import resolve_split, role_of
from itr.errors import DataError

FOLDERS = ("", "annotations")  # below data.root
FILE_NAME = re.compile(r"captions_(?P<split>[a-z]+(?:\d{4})?)\.json", re.IGNORECASE)
LAYOUT = LayoutSpec("coco", "pixels", 3, "captions_train.json (COCO)")


@dataclass(frozen=True)
class CocoLayout:
    """The caption files of a folder, by split and year."""

    path: Path
    files: dict[str, Path]
    images: str | None = None
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    name: str = "coco"
    kind: str = "pixels"

    def splits(self) -> list[str]:
        """Names such as ``train2014``."""
        return list(self.files)

    def read(self, split: str) -> Split:
        """Read one split; the year may be omitted if only one year is there. Opens no image."""
        key = resolve_split(split, list(self.files), str(self.path))
        path = self.files[key]
        records, id_notes = _read_records(path)
        notes, folders = list(id_notes), (key, *_folders_of(path, key))
        return Split(
            key,
            self.name,
            resolve_image_paths(path, records, self.images, folders, notes=notes),
            decoder=self.decoder,
            source=str(path),
            notes=(*self.notes, *notes),
        )


def find(data: DataConfig) -> CocoLayout | None:
    """The caption files below ``data.root``, or None."""
    root = data_root(data)
    for folder in (root / name for name in FOLDERS):
        matches = [(path, FILE_NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.json"))]
        files = {match["split"]: path for path, match in matches if match}
        if files:
            return CocoLayout(folder, files, data.images, data.decoder)
    return None


def _folders_of(path: Path, split: str) -> list[str]:
    """Names of the folders beside ``path`` that are called after ``split`` in other words."""
    folders = [entry for base in (path.parent, path.parent.parent) for entry in os.scandir(base)]
    return sorted({f.name for f in folders if f.is_dir() and role_of(f.name) == role_of(split)})


def _read_records(path: Path) -> tuple[list[Record], tuple[str, ...]]:
    """Records in file order (``image`` is the file name), and notes.

    Images without a caption have records, too.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds {describe_value(content)}; expected an object with the lists "
            "'images' and 'annotations'"
        )
    images = _require_list(path, content, "images")
    annotations = _require_list(path, content, "annotations")
    captions = _captions_by_image(path, images, annotations)
    places = [f"{path}: images[{number}]" for number in range(len(images))]
    ids = number_ids([image["id"] for image in images], places, "image")
    caption_ids = number_ids(
        [entry["id"] for entry in annotations],
        [f"{path}: annotations[{number}]" for number in range(len(annotations))],
        "caption",
    )
    entries = []
    for number, (where, image) in enumerate(zip(places, images, strict=True)):
        file, pairs = require_text(where, image, "file_name"), captions[id_key(image["id"])]
        texts = tuple(text for _, text in pairs)
        numbers = tuple(caption_ids.numbers[index] for index, _ in pairs)
        record = Record(ids.numbers[number], file, texts, numbers, ids.extra(number))
        entries.append((where, "", record))
    require_unique_images(entries)
    records = [record for _, _, record in entries]
    return records, (*ids.notes, *caption_ids.notes)


def _captions_by_image(
    path: Path, images: list[Any], annotations: list[Any]
) -> dict[int | str, list[tuple[int, str]]]:
    """Image id -> (index, caption) of each of its annotations."""
    captions: dict[int | str, list[tuple[int, str]]] = {}
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        image_id = _require_id(where, image, "id")
        if image_id in captions:
            raise DataError(f"{where}: duplicate image id {image_id}; image ids must be unique")
        captions[image_id] = []
    for number, entry in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        image_id = _require_id(where, entry, "image_id")
        if image_id not in captions:
            raise DataError(f"{where}: image_id {image_id} is not in 'images'")
        caption = require_text(where, entry, "caption").strip()
        if not caption:
            raise DataError(f"{where}: empty caption; write one, or remove the entry")
        _require_id(where, entry, "id")
        captions[image_id].append((number, caption))
    return captions


def _require_list(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: '{key}' is {describe_value(value)}; expected a non-empty list")
    return value


def _require_id(where: str, entry: Any, key: str) -> int | str:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: is {describe_value(entry)}; expected an object")
    value = require_id(where, key, entry.get(key))
    if is_missing(value):
        raise DataError(f"{where}: '{key}' is {describe_value(value)}; expected an id")
    return id_key(value)
