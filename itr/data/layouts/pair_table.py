"""Reader of tables of pairs: CSV, TSV, JSON lines or Parquet with an image and a caption a row.

Rows of the same ``image`` are one record, in the order of their first. A column ``split`` tells
splits apart; else val and test have tables of their own, or are held out of the training table.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.layout import coco_id, find_files, root_of, split_in
from itr.data.layouts.json_annotations import kind, place_pictures, require_apart
from itr.data.layouts.tabular import ENDINGS, read_rows
from itr.data.records import SEQUENTIAL_ID, Record, Split
from itr.errors import ConfigError, DataError

# What people call a column; data.columns names others. The first that a table has counts.
COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "filepath", "image_path", "file_name", "filename", "file", "path"),
    "caption": ("caption", "captions", "text", "title"),
    "image_id": ("image_id", "imgid", "cocoid"),
    "caption_id": ("caption_id", "sentid"),
    "split": ("split",),
}
NEEDED = ("image", "caption")
ROLES = ("train", "val", "test")
NAMES = re.compile(
    rf"(?:(?P<name>.+)_)?(?P<split>train|val|dev|test|pairs)(?:{'|'.join(map(re.escape, ENDINGS))})"
)
SECOND = "second"  # key of a record's extra


@dataclass(frozen=True)
class PairTable:
    """The tables of a data set: ``files`` by split; that of ``train`` may hold them all."""

    path: Path
    files: dict[str, Path]
    columns: dict[str, str] = field(default_factory=dict)
    second_key: str = "synthetic_caption"
    held_out: float = 0
    pictures: str | None = None
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    layout: str = "table"
    holds: str = "pixels"

    def splits(self) -> list[str]:
        """Those of the tables, and what is held out."""
        return list(self._all())

    def read(self, split: str) -> Split:
        """One split; no picture is opened."""
        splits = self._all()
        role = {"dev": "val", "testall": "test"}.get(split, split)
        if role in ROLES[1:] and not {role, split} & splits.keys():
            raise DataError(
                f"{self.path}: has no split '{role}'; type data.{role}=FILE, or "
                "data.held_out=0.05 to hold some of the images out"
            )
        name = split_in(split, splits, str(self.path))
        path = self.files.get(name, self.path)
        placed = place_pictures(path, splits[name], self.pictures)
        second = [record.extra.get(SECOND) for record in placed]
        notes = self.notes
        complete = [text for text in second if text is not None]
        if 0 < len(complete) < len(second):
            notes = (
                *notes,
                f"{path}: no {self.second_key} for {len(second) - len(complete)} of {len(second)} "
                f"images of {name}: none is used",
            )
        return Split(
            name,
            self.layout,
            placed,
            second=complete if len(complete) == len(second) else None,
            decoder=self.decoder,
            source=str(path),
            notes=notes,
        )

    def _all(self) -> dict[str, list[Record]]:
        names = tuple(sorted({**self.columns, SECOND: self.second_key}.items()))
        splits: dict[str, list[Record]] = {}
        for name, path in self.files.items():
            stat = path.stat()
            own = _read(path, name, names, stat.st_size, stat.st_mtime_ns)
            if clash := splits.keys() & own.keys():
                raise DataError(f"{path}: holds split '{min(clash)}', which has a table of its own")
            splits |= own
        wanted = [role for role in ROLES[1:] if role not in splits and _other(role) not in splits]
        if self.held_out and wanted and "train" in splits:
            splits |= _hold_out(splits["train"], wanted, self.held_out, str(self.path))
        return splits


def find(data: DataConfig) -> PairTable | None:
    """The tables that ``data`` names, or those below ``data.root``; None: there are none.

    Raises DataError for a table that does not exist.
    """
    given = {role: getattr(data, role) for role in ROLES if getattr(data, role) is not None}
    notes: tuple[str, ...] = ()
    if given:
        if "train" not in given:
            raise ConfigError("data.train: has no value beside data.val or data.test; type a file")
        files = {role: Path(file).expanduser() for role, file in given.items()}
        for role, path in files.items():
            if not path.is_file():
                raise DataError(f"data.{role}={given[role]}: no such file; type data.{role}=FILE")
    else:
        found = find_files([root_of(data)], NAMES, data.name)
        if found is None:
            return None
        files, notes = dict(found.by_split), found.notes
        if "pairs" in files:
            files.setdefault("train", files.pop("pairs"))
    options = (data.columns, data.second_key, data.held_out, data.images, data.decoder)
    return PairTable(files.get("train", next(iter(files.values()))), files, *options, notes)


def _other(role: str) -> str:
    return {"val": "dev"}.get(role, role)


@functools.lru_cache(maxsize=3)
def _read(
    path: Path, split: str, columns: tuple[tuple[str, str], ...], size: int, changed: int
) -> dict[str, list[Record]]:
    """Records by split; a row without one belongs to ``split``."""
    asked = dict(columns)
    images: dict[tuple[str, str], dict[str, Any]] = {}
    number = 0
    chosen: dict[str, str] | None = None
    for where, row in read_rows(path):
        if chosen is None:
            chosen = _choose(path, row, asked)
        part = str(row.get(chosen.get("split", ""), "") or split).strip()
        image, texts = _image(where, row, chosen["image"]), _texts(where, row, chosen["caption"])
        found = images.setdefault((part, image), {"where": where, "texts": [], "ids": []})
        found["texts"].extend(texts)
        own = _whole(where, row, chosen.get("caption_id"))
        found["ids"].extend(range(number, number + len(texts)) if own is None else [own])
        own = _whole(where, row, chosen.get("image_id"))
        if found.setdefault("id", own) != own:
            raise DataError(f"{where}: image id {own} of {image}, which had {found['id']} before")
        found.setdefault(SECOND, str(row.get(asked[SECOND]) or "").strip() or None)
        number += len(texts)
    places = [(v["where"], part, _record(key, image, v))
              for key, ((part, image), v) in enumerate(images.items())]  # fmt: skip
    require_apart(places)
    splits: dict[str, list[Record]] = {}
    for _, part, record in places:
        splits.setdefault({"restval": "train"}.get(part, part), []).append(record)
    if not splits:
        raise DataError(f"{path}: holds no row; expected an image and a caption in each")
    return splits


def _record(number: int, image: str, found: Mapping[str, Any]) -> Record:
    own = found["id"]
    if own is None:
        named = coco_id(image)
        own = number if named is None else named
    extra = {} if found[SECOND] is None else {SECOND: found[SECOND]}
    if found["id"] is None and coco_id(image) is None:
        extra[SEQUENTIAL_ID] = True
    return Record(own, image, tuple(found["texts"]), tuple(found["ids"]), extra)


def _choose(path: Path, row: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, str]:
    """Which of the columns of ``row`` is which."""
    if unknown := asked.keys() - COLUMNS.keys() - {SECOND}:
        raise ConfigError(
            f"data.columns.{min(unknown)}: unknown; expected some of {', '.join(COLUMNS)}"
        )
    chosen = {}
    for key, names in COLUMNS.items():
        wanted = (asked[key],) if key in asked else names
        found = next((name for name in wanted if name in row), None)
        if found is not None:
            chosen[key] = found
        elif key in NEEDED or key in asked:
            raise DataError(
                f"{path}: has no column {' or '.join(wanted)}; its columns: {', '.join(row)}. Type "
                f"'data.columns={{{key}: NAME}}'"
            )
    return chosen


def _image(where: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: '{column}' is {kind(value)}; expected the path of a picture")
    return value.strip()


def _texts(where: str, row: Mapping[str, Any], column: str) -> list[str]:
    found = row.get(column)
    texts = []
    for text in found if isinstance(found, list) and found else [found]:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: '{column}' is {kind(text)}; expected a caption")
        texts.append(text.strip())
    return texts


def _whole(where: str, row: Mapping[str, Any], column: str | None) -> int | None:
    value = None if column is None else row.get(column)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: '{column}' is {kind(value)}; expected a whole number") from error


def _hold_out(
    train: list[Record], wanted: list[str], held_out: float, where: str
) -> dict[str, list[Record]]:
    """``train`` and ``wanted``: those of its images whose names' hashes come first.

    So a table that grows changes little, and the pairs of an image stay together.
    """
    size = int(held_out) if held_out >= 1 else max(1, round(held_out * len(train)))
    if size * len(wanted) >= len(train):
        raise ConfigError(
            f"data.held_out={held_out:g}: {' and '.join(wanted)} would take all {len(train)} "
            f"images of {where}"
        )
    order = sorted(range(len(train)), key=lambda n: hashlib.sha1(_name(train[n])).digest())
    parts = {}
    for place, role in enumerate(reversed(wanted)):
        chosen = sorted(order[place * size : (place + 1) * size])
        parts[role] = [train[n] for n in chosen]
    rest = sorted(order[len(wanted) * size :])
    return {"train": [train[n] for n in rest], **dict(reversed(parts.items()))}


def _name(record: Record) -> bytes:
    return str(record.image).encode()
