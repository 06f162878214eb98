"""Reader for Karpathy's annotations: ``dataset_<name>.json`` beside a folder of images.

The standard layout for Flickr30K and MS-COCO: a list ``images``, each entry with ``filename``,
``split``, ``sentences`` (``raw``), an optional ``filepath`` and ids (``cocoid`` for COCO).
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from itr.data.config import DataConfig
from itr.data.ids import is_missing, number_ids, require_id
from itr.data.layout import LayoutSpec, data_root, file_prefixes, is_junk
from itr.data.layouts.json_annotations import (
    describe_value,
    load_json,
    require_text,
    require_unique_images,
    resolve_image_paths,
)
from itr.data.records import Record, Split
from itr.data.splits import resolve_split, split_key
from itr.errors import DataError

PREFIX = "dataset_"
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

    def splits(self) -> dict[str, int]:
        """Its splits and their numbers of images; ``restval`` is merged into ``train``."""
        return {name: len(records) for name, records in self._records()[0].items()}

    def read(self, split: str) -> Split:
        """Read one split. Opens no image."""
        splits, id_notes = self._records()
        key = resolve_split(split, splits, str(self.path))
        notes: list[str] = []
        return Split(
            key,
            self.name,
            resolve_image_paths(self.path, splits[key], self.images, notes=notes),
            decoder=self.decoder,
            source=str(self.path),
            notes=(*self.notes, *id_notes, *notes),
        )

    def _records(self) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
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
    found = [path for folder in folders for path in sorted(folder.glob(f"{PREFIX}*.json"))]
    paths = [path for path in found if not is_junk(path.name)]
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


class _Image(NamedTuple):
    """An entry of the file. Its ids are as the file gives them; None: none."""

    where: str
    split: str
    file: str
    captions: list[str]
    id: Any
    caption_ids: list[tuple[str, Any]]  # with their positions


@functools.lru_cache(maxsize=1)  # train, val and test are read one after the other
def _read_records(
    path: Path, size: int, mtime_ns: int
) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
    """Records by split, ``image`` still relative to the image folder; notes about the ids."""
    content = load_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        value = describe_value(images if isinstance(content, dict) else content)
        raise DataError(f"{path}: expected an object with a non-empty list 'images', not {value}")
    parsed = [_parse_image(f"{path}: images[{n}]", image) for n, image in enumerate(images)]
    ids = number_ids([image.id for image in parsed], [image.where for image in parsed], "image")
    places = [entry for image in parsed for entry in image.caption_ids]
    captions = number_ids([n for _, n in places], [where for where, _ in places], "caption")
    splits: dict[str, list[Record]] = {}
    entries: list[tuple[str, str, Record]] = []
    numbers = iter(captions.numbers)
    for index, image in enumerate(parsed):
        caption_ids = tuple(itertools.islice(numbers, len(image.captions)))
        extra = ids.extra(index)
        record = Record(ids.numbers[index], image.file, tuple(image.captions), caption_ids, extra)
        splits.setdefault(split_key(image.split), []).append(record)
        entries.append((image.where, image.split, record))
    require_unique_images(entries)
    return splits, (*ids.notes, *captions.notes)


def _parse_image(where: str, image: Any) -> _Image:
    if not isinstance(image, dict):
        raise DataError(f"{where}: is {describe_value(image)}; expected an object")
    split, name = require_text(where, image, "split"), require_text(where, image, "filename")
    folder = require_text(where, image, "filepath") if image.get("filepath") else ""
    sentences = image.get("sentences")
    if not isinstance(sentences, list):
        raise DataError(
            f"{where} ({name}): 'sentences' is {describe_value(sentences)}; expected a list of "
            "captions"
        )
    captions, ids = [], []
    for index, sentence in enumerate(sentences):
        captions.append(_parse_caption(f"{where}.sentences[{index}] ({name})", sentence))
        ids.append((where, _first_id(where, sentence, ("sentid",))))
    file = os.path.join(folder, name)
    return _Image(where, split, file, captions, _first_id(where, image, ID_KEYS), ids)


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


def _first_id(where: str, entry: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The first of ``keys`` that ``entry`` has; None if it has none."""
    values = (require_id(where, key, entry.get(key)) for key in keys)
    return next((value for value in values if not is_missing(value)), None)
