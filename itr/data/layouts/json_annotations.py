"""What the readers of JSON annotations share: the file, its values, the folder of pictures."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itr.data.records import Record
from itr.errors import DataError

PICTURE_FOLDERS = ("images", "flickr30k-images", "flickr30k_images", "Images")
SHOWN = 3  # file names listed in a message


def load_json(path: Path) -> Any:
    """What the file holds. Raises DataError for one that cannot be read, or is no whole JSON."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except ValueError as error:
        raise DataError(
            f"{path}: no complete JSON ({error}; {path.stat().st_size} bytes); copy or download it "
            "again"
        ) from error


def kind(value: Any) -> str:
    """What to call ``value`` in a message."""
    if value is None:
        return "missing"
    if isinstance(value, str | list | dict) and not value:
        return f"an empty {type(value).__name__}"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) < 40 else shown[:36] + '...'}"


def text_in(where: str, image: Mapping[str, Any], key: str) -> str:
    """The text ``image[key]``. Raises DataError, at ``where``, for anything else."""
    value = image.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: '{key}' is {kind(value)}; expected text that is not empty")
    return value


def require_apart(places: Iterable[tuple[str, str, Record]]) -> None:
    """Raise DataError if two of ``places`` (where, split, record) share a picture or an id."""
    files: dict[str, tuple[str, str]] = {}
    ids: dict[int, str] = {}
    for where, split, record in places:
        file = str(record.image)
        if file in files:
            first, other = files[file]
            both = f"in split '{split}' and '{other}'" if other != split else "twice"
            raise DataError(
                f"{where}: picture {file} stands {both}; the first is {first}. Keep one entry, "
                "with all captions"
            )
        if record.image_id in ids:
            raise DataError(
                f"{where} ({file}): image id {record.image_id} is that of {ids[record.image_id]}, "
                "too; every image needs an id of its own"
            )
        files[file], ids[record.image_id] = (where, split), where


def place_pictures(
    path: Path, records: Sequence[Record], pictures: str | None, folders: Sequence[str] = ()
) -> list[Record]:
    """``records`` of the annotations ``path`` with whole paths; every picture is there.

    ``pictures`` is the folder of the pictures (None: found beside ``path``; ``folders`` are further
    names of it). Raises DataError that counts and names what is missing.
    """
    base = _picture_folder(path, str(records[0].image), pictures, folders)
    _require_pictures(path, base, records)
    return [dataclasses.replace(r, image=str(base / str(r.image))) for r in records]


def _picture_folder(path: Path, first: str, pictures: str | None, folders: Sequence[str]) -> Path:
    """The folder below which the pictures lie, judged by the first of them."""
    if pictures is not None:
        base = Path(pictures).expanduser()
        if not base.is_dir():
            raise DataError(f"data.images={pictures}: no such folder; type data.images=DIR")
        return base
    names = ("", *folders, *PICTURE_FOLDERS)
    tried = [base / name for base in (path.parent, path.parent.parent) for name in names]
    for base in tried:
        if (base / first).is_file():
            return base
    # Not the first one, then: the folder that at least looks right says what is missing.
    return next((base for base in tried if (base / first).parent.is_dir()), tried[0])


def _require_pictures(path: Path, base: Path, records: Sequence[Record]) -> None:
    """Raise DataError if a picture is missing; one listing a folder, no look at each file."""
    listed: dict[str, set[str]] = {}
    missing = []
    for record in records:
        folder, name = os.path.split(str(record.image))
        if folder not in listed:
            listed[folder] = _names(base / folder)
        if name not in listed[folder]:
            missing.append(str(record.image))
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise DataError(
            f"{path}: {len(missing)} of {len(records)} pictures are not below {base}: {shown}. "
            "Put them there, or type data.images=DIR"
        )


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
