"""The real ids of pre-computed regions: ``<split>_ids.txt``, ``_capids.txt``, ``id_mapping.json``.

A line of the first is the id of a row of the array (or of an image, or of a caption), a line of the
second that of a caption; both may lie in ``cxc_annots/`` below the arrays. The third, where it is
there, gives each image id the name of its picture, and COCO's names end with COCO's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from itr.data.layout import coco_id
from itr.data.layouts.json_annotations import kind, load_json
from itr.errors import DataError

IDS, CAPTION_IDS, MAPPING = "_ids.txt", "_capids.txt", "id_mapping.json"
ANNOTATIONS = "cxc_annots"  # CxC's own files; its folder may hold the ids, too


@dataclass(frozen=True)
class Ids:
    """Of N images and C captions: their ids (counted from 0 where no file has them), and the names
    of the images' pictures (empty: not known)."""

    numbers: Sequence[int]
    captions: Sequence[int]
    files: Sequence[str] = ()


def read_ids(folder: Path, split: str, rows: int, step: int, share: int) -> Ids:
    """The ids of ``split``, of ``rows`` / ``step`` images with ``share`` captions each.

    Raises DataError that names the file, and the line if it is one.
    """
    captions = _caption_ids(folder, split, rows // step * share)
    path = _find(folder, f"{split}{IDS}")
    if path is None:
        return Ids(range(rows // step), captions)
    lines, images = _lines(path), rows // step
    if len(lines) not in (images, rows, images * share):
        raise DataError(
            f"{path}: {len(lines)} ids for {images} images; expected one an image, or one a "
            f"caption ({images * share}); repair the file, or remove it: images are then numbered"
        )
    every = len(lines) // images
    for number, line in enumerate(lines):
        if line != lines[number - number % every]:
            raise DataError(
                f"{path}, line {number + 1}: id {line}, but image {number // every} began with "
                f"{lines[number - number % every]}"
            )
    own = lines[::every]
    if len(set(own)) < images:
        twice = Counter(own).most_common(1)[0][0]
        raise DataError(f"{path}: image id {twice} stands twice; every image needs its own")
    files = _files(folder / MAPPING, own)
    named = [coco_id(file) for file in files]
    numbers = [int(line) for line in own]
    if files and None not in named:
        numbers = [number for number in named if number is not None]
    return Ids(numbers, captions, files)


def _caption_ids(folder: Path, split: str, count: int) -> Sequence[int]:
    path = _find(folder, f"{split}{CAPTION_IDS}")
    if path is None:
        return range(count)
    lines = _lines(path)
    if len(lines) != count:
        raise DataError(f"{path}: {len(lines)} ids for {count} captions; expected one each")
    numbers = [int(line) for line in lines]
    if len(set(numbers)) < count:
        twice = Counter(numbers).most_common(1)[0][0]
        raise DataError(f"{path}: caption id {twice} stands twice; every caption needs its own")
    return numbers


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / ANNOTATIONS / name) if p.is_file()), None)


def row_names(folder: Path, split: str, rows: int) -> list[str]:
    """The name of the picture (or the id) of each of the ``rows`` of a region array.

    Raises DataError where nothing says whose they are.
    """
    path = _find(folder, f"{split}{IDS}")
    if path is None:
        path = folder / f"{split}{IDS}"
        raise DataError(f"{path}: not found; it says whose rows {split}_ims.npy holds, a line each")
    lines = _lines(path)
    if not lines or rows % len(lines):
        raise DataError(f"{path}: {len(lines)} ids for {rows} rows of {split}_ims.npy")
    names = _files(folder / MAPPING, lines) or lines
    return [name for name in names for _ in range(rows // len(lines))]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
        if not line.isascii() or not line.isdigit():
            raise DataError(f"{path}, line {number}: {line[:20]!r} is no id; expected a number")
    return lines


def _files(path: Path, ids: list[str]) -> list[str]:
    if not path.is_file():
        return []
    mapping = load_json(path)
    if not isinstance(mapping, dict):
        raise DataError(f"{path}: is {kind(mapping)}; expected an object id -> file name")
    files = [mapping.get(key) for key in ids]
    if lacking := [key for key, file in zip(ids, files, strict=True) if not isinstance(file, str)]:
        raise DataError(f"{path}: no file name for {len(lacking)} ids: {', '.join(lacking[:3])}")
    return [str(file) for file in files]
