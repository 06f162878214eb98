"""Reader of COCO's caption files: ``captions_<split><year>.json`` beside folders of pictures.

Two lists: ``images`` (``id``, ``file_name``) and ``annotations`` (``id``, ``image_id``,
``caption``). Images come in the order of the first, an image's captions in that of the second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.layout import root_of, split_in
from itr.data.layouts.json_annotations import (
    kind,
    load_json,
    place_pictures,
    require_apart,
    text_in,
)
from itr.data.records import Record, Split
from itr.errors import DataError

FOLDERS = ("", "annotations")  # below data.root
NAMES = re.compile(r"captions_(?P<split>[a-z]+)(?P<year>\d{4})?\.json")
SHOWN = 3


@dataclass(frozen=True)
class Coco:
    """The caption files of a folder, by split and year."""

    path: Path
    files: dict[str, Path]
    pictures: str | None = None
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    layout: str = "coco"
    holds: str = "pixels"

    def splits(self) -> list[str]:
        """Such as ``train2014``; ``train`` will do where there is one of it."""
        return list(self.files)

    def read(self, split: str) -> Split:
        """One split; no picture is opened."""
        short: dict[str, list[str]] = {}
        for known in self.files:
            short.setdefault(known.rstrip("0123456789"), []).append(known)
        name = split
        if split not in self.files:
            name = split_in(split, list(short), str(self.path))
            if len(short[name]) > 1:
                raise DataError(
                    f"{self.path}: holds {' and '.join(short[name])}; type data.splits.{split}="
                    f"{short[name][0]} to choose one"
                )
            (name,) = short[name]
        path = self.files[name]
        records, notes = _records(path)
        return Split(
            name,
            self.layout,
            place_pictures(path, records, self.pictures, (name,)),
            decoder=self.decoder,
            source=str(path),
            notes=(*self.notes, *notes),
        )


def find(data: DataConfig) -> Coco | None:
    """The caption files below ``data.root``; None: there are none."""
    root = root_of(data)
    for folder in (root / name for name in FOLDERS):
        found = sorted(folder.glob("captions_*.json"))
        matches = [(path, NAMES.fullmatch(path.name)) for path in found]
        files = {f"{m['split']}{m['year'] or ''}": path for path, m in matches if m}
        if files:
            return Coco(folder, files, data.images, data.decoder)
    return None


def _records(path: Path) -> tuple[list[Record], tuple[str, ...]]:
    content = load_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: is {kind(content)}; expected COCO's object of lists")
    images, annotations = (_list(path, content, key) for key in ("images", "annotations"))
    captions: dict[int, list[tuple[int, str]]] = {}
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        image_id = _id(where, image, "id")
        if image_id in captions:
            raise DataError(f"{where}: id {image_id} is another image's, too; each needs its own")
        captions[image_id] = []
    for number, entry in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        image_id = _id(where, entry, "image_id")
        if image_id not in captions:
            raise DataError(f"{where}: image_id {image_id} is none of the file's images")
        caption = text_in(where, entry, "caption").strip()
        if not caption:
            raise DataError(f"{where}: empty caption; write one, or remove the entry")
        captions[image_id].append((_id(where, entry, "id"), caption))
    places, silent = [], []
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        file, own = text_in(where, image, "file_name"), captions[image["id"]]
        texts, ids = tuple(text for _, text in own), tuple(n for n, _ in own)
        places.append((where, "", Record(image["id"], file, texts, ids)))
        if not own:
            silent.append(file)
    require_apart(places)
    records = [record for _, _, record in places if record.captions]
    if not records:
        raise DataError(f"{path}: none of its {len(images)} images has a caption")
    if not silent:
        return records, ()
    shown = ", ".join(silent[:SHOWN]) + (", ..." if len(silent) > SHOWN else "")
    return records, (f"{path}: {len(silent)} images without a caption are left out: {shown}",)


def _list(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    found = content.get(key)
    if not isinstance(found, list) or not found:
        raise DataError(f"{path}: '{key}' is {kind(found)}; expected a list that is not empty")
    return found


def _id(where: str, entry: Any, key: str) -> int:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, found {kind(entry)}")
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: '{key}' is {kind(value)}; expected a whole number")
    return value
