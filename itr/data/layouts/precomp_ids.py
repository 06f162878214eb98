"""Reads the ids of precomputed regions: ``<split>_ids.txt``, ``_capids.txt``, ``id_mapping.json``.

A line of ``<split>_ids.txt`` is the id of a row of the array (or of an image, or of a caption), a
line of ``<split>_capids.txt`` that of a caption. Both may also be in ``cxc_annots/``.
``id_mapping.json`` maps image ids to file names; the file names of COCO end with the COCO id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from itr.data.layout import coco_id
from itr.data.layouts.json_annotations import describe_value, load_json
from itr.errors import DataError, first_of

IDS, CAPTION_IDS, MAPPING = "_ids.txt", "_capids.txt", "id_mapping.json"
ANNOTATIONS = "cxc_annots"  # folder of the CxC files, where published archives put the ids


@dataclass(frozen=True)
class PrecompIds:
    """Ids of N images and C captions, running numbers where no file gives them.

    ``files`` are the file names of the images; empty if unknown.
    """

    images: Sequence[int]
    captions: Sequence[int]
    files: Sequence[str] = ()


def read_ids(folder: Path, split: str, rows: int, step: int, per_image: int) -> PrecompIds:
    """Read the ids of ``split``: ``rows`` / ``step`` images with ``per_image`` captions each.

    Raises DataError that names the file and, where there is one, the line.
    """
    n_images = rows // step
    captions = _read_caption_ids(folder, split, n_images * per_image)
    path = _find_file(folder, f"{split}{IDS}")
    if path is None:
        return PrecompIds(range(n_images), captions)
    ids = _one_per_image(path, _read_numbers(path), n_images, rows, n_images * per_image)
    if len(set(ids)) < n_images:
        duplicate = Counter(ids).most_common(1)[0][0]
        raise DataError(f"{path}: duplicate image id {duplicate}; image ids must be unique")
    files = _file_names(folder / MAPPING, ids)
    coco_ids = [coco_id(file) for file in files]
    numbers = [int(line) for line in ids]
    if files and None not in coco_ids:
        numbers = [number for number in coco_ids if number is not None]
    return PrecompIds(numbers, captions, files)


def _one_per_image(
    path: Path, lines: list[str], n_images: int, rows: int, n_captions: int
) -> list[str]:
    """One id per image from ``lines``, one per image, per row or per caption."""
    if len(lines) not in (n_images, rows, n_captions):
        raise DataError(
            f"{path}: {len(lines)} ids for {n_images} images; expected one per image or one per "
            f"caption ({n_captions}). Repair the file, or remove it to number the images instead"
        )
    repeats = len(lines) // n_images
    for number, line in enumerate(lines):
        first = lines[number - number % repeats]
        if line != first:
            raise DataError(
                f"{path}, line {number + 1}: id {line}, but image {number // repeats} started "
                f"with id {first}; expected {repeats} equal lines per image"
            )
    return lines[::repeats]


def _read_caption_ids(folder: Path, split: str, count: int) -> Sequence[int]:
    path = _find_file(folder, f"{split}{CAPTION_IDS}")
    if path is None:
        return range(count)
    lines = _read_numbers(path)
    if len(lines) != count:
        raise DataError(f"{path}: {len(lines)} ids for {count} captions; expected one per caption")
    numbers = [int(line) for line in lines]
    if len(set(numbers)) < count:
        duplicate = Counter(numbers).most_common(1)[0][0]
        raise DataError(f"{path}: duplicate caption id {duplicate}; caption ids must be unique")
    return numbers


def _find_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / ANNOTATIONS / name) if p.is_file()), None)


def row_names(folder: Path, split: str, rows: int) -> list[str]:
    """The image file name (or id) of each of the ``rows`` of a region array.

    Raises DataError if no file identifies the rows.
    """
    path = _find_file(folder, f"{split}{IDS}")
    if path is None:
        path = folder / f"{split}{IDS}"
        raise DataError(
            f"{path}: not found; expected one image id per line for the rows of {split}_ims.npy"
        )
    lines = _read_numbers(path)
    if not lines or rows % len(lines):
        raise DataError(
            f"{path}: {len(lines)} ids for {rows} rows of {split}_ims.npy; expected one id per "
            "image or row"
        )
    names = _file_names(folder / MAPPING, lines) or lines
    return [name for name in names for _ in range(rows // len(lines))]


def _read_numbers(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
        if not line.isascii() or not line.isdigit():
            raise DataError(f"{path}, line {number}: {line[:20]!r} is not an id; expected a number")
    return lines


def _file_names(path: Path, ids: list[str]) -> list[str]:
    if not path.is_file():
        return []
    mapping = load_json(path)
    if not isinstance(mapping, dict):
        raise DataError(
            f"{path}: holds {describe_value(mapping)}; expected an object id -> file name"
        )
    files = [mapping.get(key) for key in ids]
    if missing := [key for key, file in zip(ids, files, strict=True) if not isinstance(file, str)]:
        raise DataError(f"{path}: no file name for {len(missing)} ids: {first_of(missing)}")
    return [str(file) for file in files]
