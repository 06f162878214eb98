"""Reader for Karpathy's annotations: ``dataset_<name>.json`` beside a folder of images.

The standard layout for Flickr30K and MS-COCO: a list ``images``, each entry with ``filename``,
``split``, ``sentences`` (``raw``), an optional ``filepath`` and ids (``cocoid`` for COCO).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.layout import LayoutSpec, data_root, file_prefixes, resolve_split
from itr.data.layouts.json_annotations import (
    describe_value,
    load_json,
    require_text,
    require_unique_images,
    resolve_image_paths,
)
from itr.data.records import SEQUENTIAL_ID, Record, Split
from itr.errors import DataError

PREFIX = "dataset_"
MERGED_SPLITS = {"restval": "train"}  # COCO: validation images that are used for training
STANDARD_SPLITS = ("train", "val", "test", "dev", "testall")
ID_KEYS = ("cocoid", "imgid")  # of an image; the first one present is used
LAYOUT = LayoutSpec("karpathy", "pixels", 1, "dataset_{name}.json (Karpathy)")


@dataclass(frozen=True)
class KarpathyLayout:
    """One annotation file; ``images`` is the image folder (None: searched beside the file)."""

    path: Path
    images: str | None = None
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    name: str = "karpathy"
    kind: str = "pixels"

    def splits(self) -> list[str]:
        """Its splits; ``restval`` is merged into ``train``."""
        return list(self._records())

    def read(self, split: str) -> Split:
        """Read one split. Opens no image."""
        splits = self._records()
        key = resolve_split(split, splits, str(self.path))
        others = [
            f"{name} ({len(records)} images)"
            for name, records in splits.items()
            if name not in STANDARD_SPLITS
        ]
        notes = (f"{self.path}: also has splits {', '.join(others)}",) if others else ()
        return Split(
            key,
            self.name,
            resolve_image_paths(self.path, splits[key], self.images),
            decoder=self.decoder,
            source=str(self.path),
            notes=(*self.notes, *notes),
        )

    def _records(self) -> dict[str, list[Record]]:
        stat = self.path.stat()
        return _read_records(self.path, stat.st_size, stat.st_mtime_ns)


def find(data: DataConfig) -> KarpathyLayout | None:
    """The annotation file of the dataset below ``data.root``, or None.

    Raises DataError if there are several files and none is named after the dataset.
    """
    root = data_root(data)
    folders = [root, root / data.name, root / "annotations"]
    for folder in folders:
        for prefix in file_prefixes(data.name):
            if (path := folder / f"{PREFIX}{prefix}.json").is_file():
                return KarpathyLayout(path, data.images, data.decoder)
    paths = [path for folder in folders for path in sorted(folder.glob(f"{PREFIX}*.json"))]
    if len(paths) > 1:
        raise DataError(
            f"data.root={root}: holds {', '.join(path.name for path in paths)}, none of them for "
            f"data.name={data.name}. Pass data.name={paths[0].stem.removeprefix(PREFIX)} to choose "
            "one"
        )
    if not paths:
        return None
    note = f"no file is named after data.name={data.name}: using {paths[0]}"
    return KarpathyLayout(paths[0], data.images, data.decoder, (note,))


@functools.lru_cache(maxsize=1)  # train, val and test are read one after the other
def _read_records(path: Path, size: int, mtime_ns: int) -> dict[str, list[Record]]:
    """Records by split; ``image`` is still relative to the image folder."""
    content = load_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        value = describe_value(images if isinstance(content, dict) else content)
        raise DataError(f"{path}: expected an object with a non-empty list 'images', not {value}")
    splits: dict[str, list[Record]] = {}
    entries: list[tuple[str, str, Record]] = []
    first_caption = 0
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        split, record = _parse_image(where, image, number, first_caption)
        splits.setdefault(MERGED_SPLITS.get(split, split), []).append(record)
        entries.append((where, split, record))
        first_caption += len(record.captions)
    require_unique_images(entries)
    return splits


def _parse_image(where: str, image: Any, number: int, first_caption: int) -> tuple[str, Record]:
    """(split, record) of the ``number``-th entry; missing ids are counted from the arguments."""
    if not isinstance(image, dict):
        raise DataError(f"{where}: is {describe_value(image)}; expected an object")
    split, name = require_text(where, image, "split"), require_text(where, image, "filename")
    folder = require_text(where, image, "filepath") if image.get("filepath") else ""
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise DataError(
            f"{where} ({name}): 'sentences' is {describe_value(sentences)}; expected a non-empty "
            "list of captions"
        )
    captions, ids = [], []
    for index, sentence in enumerate(sentences):
        captions.append(_parse_caption(f"{where}.sentences[{index}] ({name})", sentence))
        ids.append(_first_id(where, sentence, ("sentid",), first_caption + index))
    return split, Record(
        image_id=_first_id(where, image, ID_KEYS, number),
        image=os.path.join(folder, name),
        captions=tuple(captions),
        caption_ids=tuple(ids),
        extra={SEQUENTIAL_ID: True} if all(image.get(key) is None for key in ID_KEYS) else {},
    )


def _parse_caption(where: str, sentence: Any) -> str:
    if not isinstance(sentence, dict):
        raise DataError(f"{where}: is {describe_value(sentence)}; expected an object with 'raw'")
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    if raw is None and isinstance(tokens, list):
        raw = " ".join(map(str, tokens))
    if not isinstance(raw, str):
        raise DataError(f"{where}: 'raw' is {describe_value(raw)}; expected a caption")
    if not raw.strip():
        raise DataError(f"{where}: empty caption; write one, or remove the entry")
    return raw.strip()


def _first_id(where: str, entry: Mapping[str, Any], keys: tuple[str, ...], default: int) -> int:
    """The first of ``keys`` that ``entry`` has; ``default`` if it has none."""
    for key in keys:
        value = entry.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if value is not None:
            raise DataError(f"{where}: '{key}' is {describe_value(value)}; expected an integer")
    return default
