"""Where a layout lies on disk: what its reader found by looking, and how files are told apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from itr.data.config import DataConfig
from itr.data.records import Split
from itr.errors import DataError
from itr.instantiate import nearest

SHOWN = 12  # names listed in a message
SET_NAMES = {"f30k": "flickr30k"}  # data.name -> what files call the set
ALIASES = {"dev": "val", "testall": "test", "val": "dev"}  # what other layouts call a split
COCO_ID = re.compile(r"(?:COCO_\w+?_)?(\d{12})\.\w+$")  # COCO_val2014_000000391895.jpg


class Place(Protocol):
    """A layout that lies in a folder."""

    @property
    def layout(self) -> str:
        """Its name: karpathy, precomp, ..."""
        ...

    @property
    def holds(self) -> str:
        """``regions`` or ``pixels``."""
        ...

    @property
    def path(self) -> Path:
        """What to call it in the log and in messages."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """On how it was found."""
        ...

    def splits(self) -> list[str]:
        """The names of its splits, as on disk. Raises DataError for files that cannot be read."""
        ...

    def read(self, split: str) -> Split:
        """The split called ``split`` on disk, or as another layout calls it.

        Raises DataError that names the file for anything that cannot be used.
        """
        ...


def root_of(data: DataConfig) -> Path:
    """The folder ``data.root``. Raises DataError if there is none."""
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        raise DataError(
            f"data.root={data.root}: no such folder; expected region arrays (<split>_ims.npy, "
            f"<split>_caps.txt, also in {data.name}_precomp/ or {data.name}/precomp/), pictures "
            "with dataset_*.json or another list of captions, or tar shards; found nothing. Type "
            "data.root=DIR"
        )
    return root


def listing(folder: Path) -> str:
    """The first names in ``folder``, for a message."""
    found = sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir())
    return (", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")) or "nothing"


def set_names(name: str) -> list[str]:
    """What files call the data set ``name``."""
    return list(dict.fromkeys((name, SET_NAMES.get(name, name))))


def coco_id(file: str) -> int | None:
    """COCO's id of an image, which ends the name of its file; None: no such name."""
    found = COCO_ID.search(file)
    return int(found.group(1)) if found else None


def split_in(split: str, known: Mapping[str, object] | Sequence[str], where: str) -> str:
    """What ``known`` calls ``split``. Raises DataError, at ``where``, if it has no such split."""
    name = split if split in known else ALIASES.get(split, split)
    if name in known:
        return name
    sizes = (
        {key: f"{key} ({len(value)})" for key, value in known.items() if hasattr(value, "__len__")}
        if isinstance(known, Mapping)
        else {}
    )
    raise DataError(
        f"{where}: has no split '{split}'{nearest(split, known)}; its splits: "
        f"{', '.join(sizes.get(key, key) for key in known)}. Type data.splits.{split}=NAME"
    )


@dataclass(frozen=True)
class Files:
    """The files of one data set in one folder, by split."""

    folder: Path
    prefix: str
    by_split: dict[str, Path]
    notes: tuple[str, ...] = ()


def find_files(
    folders: Iterable[Path], pattern: re.Pattern[str], name: str, key: str = "data.name"
) -> Files | None:
    """The files of data set ``name`` whose names match ``pattern`` (groups ``name``, ``split``).

    The first of ``folders`` that holds any counts. Raises DataError where there are several sets
    and none bears the name.
    """
    for folder in folders:
        sets: dict[str, dict[str, Path]] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (match := pattern.fullmatch(path.name)) and path.is_file():
                own = sets.setdefault(match["name"] or "", {})
                if (other := own.get(match["split"])) is not None:
                    raise DataError(
                        f"{folder}: holds {other.name} and {path.name}; leave one of them there"
                    )
                own[match["split"]] = path
        if not sets:
            continue
        for known in (*set_names(name), ""):
            if known in sets:
                return Files(folder, known, sets[known])
        if len(sets) > 1:
            found = [min(p.name for p in files.values()) for files in sets.values()]
            raise DataError(
                f"{folder}: holds {', '.join(found[:SHOWN])}; type {key}={next(iter(sets))} "
                "to choose one"
            )
        ((prefix, files),) = sets.items()
        note = f"no file is named after data.name={name}: using {prefix}_* in {folder}"
        return Files(folder, prefix, files, (note,))
    return None
