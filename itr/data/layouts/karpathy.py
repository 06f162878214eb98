"""Reader of Karpathy's annotations: ``dataset_<name>.json`` beside a folder of pictures.

The layout of the field for Flickr30K and MS-COCO: a list ``images``, each with ``filename``, an
optional ``filepath``, ``split``, ``sentences`` (``raw``) and ids (``cocoid`` where it is COCO).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.layout import root_of, set_names, split_in
from itr.data.layouts.json_annotations import (
    kind,
    load_json,
    place_pictures,
    require_apart,
    text_in,
)
from itr.data.records import SEQUENTIAL_ID, Record, Split
from itr.errors import DataError

PREFIX = "dataset_"
FOLDED = {"restval": "train"}  # COCO: val images that nobody validates on
USUAL = ("train", "val", "test", "dev", "testall")
IDS = ("cocoid", "imgid")  # of an image; the first that it has counts


@dataclass(frozen=True)
class Karpathy:
    """An annotation file; ``pictures`` is their folder (None: found beside it)."""

    path: Path
    pictures: str | None = None
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    layout: str = "karpathy"
    holds: str = "pixels"

    def splits(self) -> list[str]:
        """Its splits; ``restval`` is part of ``train``."""
        return list(self._records())

    def read(self, split: str) -> Split:
        """One split; no picture is opened."""
        splits = self._records()
        name = split_in(split, splits, str(self.path))
        odd = [f"{key} ({len(own)} images)" for key, own in splits.items() if key not in USUAL]
        notes = (f"{self.path}: also has splits {', '.join(odd)}",) if odd else ()
        placed = place_pictures(self.path, splits[name], self.pictures)
        return Split(
            name,
            self.layout,
            placed,
            decoder=self.decoder,
            source=str(self.path),
            notes=(*self.notes, *notes),
        )

    def _records(self) -> dict[str, list[Record]]:
        stat = self.path.stat()
        return _read(self.path, stat.st_size, stat.st_mtime_ns)


def find(data: DataConfig) -> Karpathy | None:
    """The annotation file of the data set below ``data.root``; None: there is none.

    Raises DataError where several files would do and none bears the name.
    """
    root = root_of(data)
    folders = [root, root / data.name, root / "annotations"]
    for folder in folders:
        for known in set_names(data.name):
            if (path := folder / f"{PREFIX}{known}.json").is_file():
                return Karpathy(path, data.images, data.decoder)
    found = [path for folder in folders for path in sorted(folder.glob(f"{PREFIX}*.json"))]
    if len(found) > 1:
        raise DataError(
            f"data.root={root}: holds {', '.join(path.name for path in found)}; type data.name="
            f"{found[0].stem.removeprefix(PREFIX)} to choose one"
        )
    if not found:
        return None
    note = f"no file is named after data.name={data.name}: using {found[0]}"
    return Karpathy(found[0], data.images, data.decoder, (note,))


@functools.lru_cache(maxsize=1)  # three splits are opened one after the other
def _read(path: Path, size: int, changed: int) -> dict[str, list[Record]]:
    """Records by split; a picture is still a path relative to the folder of pictures."""
    content = load_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(
            f"{path}: expected an object with a list 'images' that is not empty; found "
            f"{kind(images if isinstance(content, dict) else content)}"
        )
    splits: dict[str, list[Record]] = {}
    places: list[tuple[str, str, Record]] = []
    first_caption = 0
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        split, record = _record(where, image, number, first_caption)
        splits.setdefault(FOLDED.get(split, split), []).append(record)
        places.append((where, split, record))
        first_caption += len(record.captions)
    require_apart(places)
    return splits


def _record(where: str, image: Any, number: int, first_caption: int) -> tuple[str, Record]:
    if not isinstance(image, dict):
        raise DataError(f"{where}: expected an object, found {kind(image)}")
    split, name = text_in(where, image, "split"), text_in(where, image, "filename")
    folder = text_in(where, image, "filepath") if image.get("filepath") else ""
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise DataError(
            f"{where} ({name}): 'sentences' is {kind(sentences)}; expected a list of captions "
            "that is not empty"
        )
    captions, ids = [], []
    for place, sentence in enumerate(sentences):
        captions.append(_caption(f"{where}.sentences[{place}] ({name})", sentence))
        ids.append(_number(where, sentence, ("sentid",), first_caption + place))
    return split, Record(
        image_id=_number(where, image, IDS, number),
        image=os.path.join(folder, name),
        captions=tuple(captions),
        caption_ids=tuple(ids),
        extra={SEQUENTIAL_ID: True} if all(image.get(key) is None for key in IDS) else {},
    )


def _caption(where: str, sentence: Any) -> str:
    if not isinstance(sentence, dict):
        raise DataError(f"{where}: expected an object with 'raw', found {kind(sentence)}")
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    if raw is None and isinstance(tokens, list):
        raw = " ".join(map(str, tokens))
    if not isinstance(raw, str):
        raise DataError(f"{where}: 'raw' is {kind(raw)}; expected a caption")
    if not raw.strip():
        raise DataError(f"{where}: empty caption; write one, or remove the entry")
    return raw.strip()


def _number(where: str, entry: Mapping[str, Any], keys: tuple[str, ...], default: int) -> int:
    for key in keys:
        value = entry.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if value is not None:
            raise DataError(f"{where}: '{key}' is {kind(value)}; expected a whole number")
    return default
