"""Helpers shared by the readers of JSON annotations: loading, validation, image paths."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itr.data.ids import NAME
from itr.data.image_folder import ImageFolder
from itr.data.records import Record
from itr.errors import DataError, first_of
from itr.files import parse_json

IMAGE_FOLDERS = ("images", "flickr30k-images", "flickr30k_images", "Images")


class MissingImagesError(DataError):
    """Images that annotations name are missing; ``all`` of them, or some."""

    def __init__(self, message: str, all_missing: bool):
        super().__init__(message)
        self.all = all_missing


def load_json(path: Path) -> Any:
    """Parse a JSON file. Raises DataError if it is unreadable or incomplete."""
    try:
        return parse_json(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except ValueError as error:
        raise DataError(
            f"{path}: not valid JSON ({error}; {path.stat().st_size} bytes); copy or download it "
            "again"
        ) from error


def describe_value(value: Any) -> str:
    """A short description of a JSON value, for a message."""
    if value is None:
        return "missing"
    if isinstance(value, str | list | dict) and not value:
        return f"an empty {type(value).__name__}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 40 else text[:36] + '...'}"


def require_text(where: str, entry: Mapping[str, Any], key: str) -> str:
    """The text ``entry[key]``. Raises DataError, prefixed with ``where``, unless it is text."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: '{key}' is {describe_value(value)}; expected non-empty text")
    return value


def require_unique_images(entries: Iterable[tuple[str, str, Record]]) -> None:
    """Raise DataError if two ``entries`` (where, split, record) share an image file or an id."""
    files: dict[str, tuple[str, str]] = {}
    ids: dict[int | str, str] = {}
    for where, split, record in entries:
        file = str(record.image)
        if file in files:
            first, other = files[file]
            splits = f"in splits '{other}' and '{split}'" if other != split else "twice"
            raise DataError(
                f"{where}: image {file} is listed {splits}, first at {first}. Keep one entry with "
                "all captions"
            )
        image_id = record.extra.get(NAME, record.image_id)
        if image_id in ids:
            raise DataError(
                f"{where} ({file}): image id {image_id} is also used by {ids[image_id]}; image ids "
                "must be unique"
            )
        files[file], ids[image_id] = (where, split), where


def resolve_image_paths(
    path: Path,
    records: Sequence[Record],
    images: str | None,
    folders: Sequence[str] = (),
    option: str = "data.images",
    notes: list[str] | None = None,
) -> list[Record]:
    """``records`` of annotation file ``path`` with absolute image paths.

    Args:
        path: the annotation file.
        records: records whose ``image`` is a path relative to the image folder.
        images: the image folder (``data.images``); None: search beside ``path``.
        folders: further folder names to search.
        option: the option that names the folder, for messages.
        notes: log lines are added here.

    Raises MissingImagesError that counts and names missing images.
    """
    sample = [str(records[n].image) for n in (0, len(records) // 2, -1)]
    base = _image_folder(path, sample, images, folders, option)
    names = _require_images(path, base, records, option, notes)
    return [
        dataclasses.replace(record, image=str(base / name))
        for record, name in zip(records, names, strict=True)
    ]


def _image_folder(
    path: Path, sample: Sequence[str], images: str | None, folders: Sequence[str], option: str
) -> Path:
    """The folder that contains one of ``sample``, relative paths of some of the images."""
    if images is not None:
        base = Path(images).expanduser()
        if not base.is_dir():
            raise DataError(f"{option}={images}: no such folder; pass {option}=DIR")
        return base
    names = ("", *folders, *IMAGE_FOLDERS)
    candidates = [base / name for base in (path.parent, path.parent.parent) for name in names]
    for base in candidates:
        if any(os.path.isfile(base / name) for name in sample):
            return base
    for base in candidates:
        folder = ImageFolder(base)
        if any(folder.find(name) is not None for name in sample):
            return base
    # They are missing: take a folder of the right structure for the error message.
    first = sample[0]
    return next((base for base in candidates if (base / first).parent.is_dir()), candidates[0])


def _require_images(
    path: Path, base: Path, records: Sequence[Record], option: str, notes: list[str] | None
) -> list[str]:
    """The name of each image as it is on disk. Raises MissingImagesError if one is missing."""
    folder, missing, names = ImageFolder(base), list[str](), list[str]()
    other: dict[str, str] = {}
    for record in records:
        name = str(record.image)
        found = folder.find(name)
        if found is None:
            missing.append(name)
        elif found != name:
            other[name] = found
        names.append(found or name)
    if missing:
        raise MissingImagesError(
            f"{path}: {len(missing)} of {len(records)} images are missing below {base}: "
            f"{first_of(missing)}. Put them there, or pass {option}=DIR",
            all_missing=len(missing) == len(records),
        )
    if other and notes is not None:
        name = next(iter(other))
        notes.append(
            f"{path}: {len(other)} image names are spelled differently on disk (Unicode form, case "
            f"or separators), e.g. {ascii(name)}: {ascii(other[name])}"
        )
    return names
