"""Reader of Karpathy's annotations: ``dataset_<name>.json`` beside a folder of pictures.

The layout of the field for Flickr30K and MS-COCO: a list ``images``, each with ``filename``, an
optional ``filepath``, ``split``, ``sentences`` (``raw``) and ids (``cocoid`` where it is COCO).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.data.annotations import kind, load_json, place_pictures, text_in
from itr.data.records import Record, Split
from itr.errors import DataError
from itr.instantiate import nearest

PREFIX = "dataset_"
FOLDED = {"restval": "train"}  # COCO: val images that nobody validates on
ALIASES = {"dev": "val", "testall": "test"}  # what other layouts call them
FILE_NAMES = {"f30k": "flickr30k"}  # data.name -> what the files call the set


def find_annotations(root: Path, name: str) -> tuple[Path | None, tuple[str, ...]]:
    """The annotation file of data set ``name`` below ``root`` (None: there is none), and notes.

    Raises DataError where several files would do and none bears the name.
    """
    folders = [root, root / name, root / "annotations"]
    names = dict.fromkeys((name, FILE_NAMES.get(name, name)))
    for folder in folders:
        for known in names:
            if (path := folder / f"{PREFIX}{known}.json").is_file():
                return path, ()
    found = [path for folder in folders for path in sorted(folder.glob(f"{PREFIX}*.json"))]
    if len(found) > 1:
        raise DataError(
            f"data.root={root}: holds {', '.join(path.name for path in found)}; type data.name="
            f"{found[0].stem.removeprefix(PREFIX)} to choose one"
        )
    if not found:
        return None, ()
    return found[0], (f"no file is named after data.name={name}: using {found[0]}",)


def read_split(path: Path, split: str, pictures: str | None = None) -> Split:
    """The split called ``split`` in the annotation file ``path``; no picture is opened.

    ``pictures`` is the folder of the pictures (None: found beside the file). Raises DataError that
    names the file and entry for anything that cannot be used, missing pictures included.
    """
    stat = path.stat()
    splits = _read(path, stat.st_size, stat.st_mtime_ns)
    name = split if split in splits else ALIASES.get(split, split)
    if name not in splits:
        raise DataError(
            f"{path}: has no split '{split}'{nearest(split, splits)}; its splits: "
            f"{', '.join(f'{key} ({len(value)})' for key, value in splits.items())}"
        )
    placed = place_pictures(path, splits[name], pictures)
    return Split(name, "karpathy", placed, source=str(path))


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
    first_caption = 0
    for number, image in enumerate(images):
        split, record = _record(f"{path}: images[{number}]", image, number, first_caption)
        splits.setdefault(FOLDED.get(split, split), []).append(record)
        first_caption += len(record.captions)
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
        image_id=_number(where, image, ("cocoid", "imgid"), number),
        image=os.path.join(folder, name),
        captions=tuple(captions),
        caption_ids=tuple(ids),
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
