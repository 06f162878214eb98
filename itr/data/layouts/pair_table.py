"""Reader for tables of image-caption pairs: CSV, TSV, JSON lines or Parquet.

Rows with the same ``image`` form one record, in the order in which images first occur. A column
``split`` assigns rows to splits. Without it, val and test have tables of their own or are held out
of the training table.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from itr.data.config import DataConfig
from itr.data.layout import (
    ROLES,
    LayoutSpec,
    data_root,
    find_dataset_files,
    resolve_split,
    role_of,
)
from itr.data.layouts.delimited import Oddities
from itr.data.layouts.json_annotations import (
    require_unique_images,
    resolve_image_paths,
)
from itr.data.layouts.table_rows import SECOND, read_entries
from itr.data.layouts.tabular import ENDINGS
from itr.data.records import Record, Split
from itr.errors import ConfigError, DataError

ENDING = "|".join(map(re.escape, ENDINGS))
# Tables without a split in their names, preferred ones first: those that Flickr8K and Flickr30K
# are published with, and NAME_caps.tsv.
WHOLE = ("pairs", "captions", "caps", "token", "results")
FILE_NAME = re.compile(
    r"(?:(?P<name>.+?)[_.])??(?P<split>"
    rf"(?:train|val|dev|test|pairs)(?=(?:_caps|_captions)?(?:{ENDING})$)"
    r"|captions(?=\.txt$)|caps(?=\.tsv$)|token(?=(?:\.txt)?$)|results(?=\.csv$))"
    r".*"
)
LAYOUT = LayoutSpec("table", "pixels", 5, "train.csv (or .tsv, .jsonl, .parquet)", second=True)


@dataclass(frozen=True)
class TableLayout:
    """The tables of a dataset, by split. The one of ``train`` may hold several splits."""

    path: Path
    files: dict[str, Path]
    columns: dict[str, str] = field(default_factory=dict)
    second_key: str = "synthetic_caption"
    held_out: float = 0
    images: str | None = None
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    name: str = "table"
    kind: str = "pixels"

    def splits(self) -> list[str]:
        """The splits of the tables, and those that are held out."""
        return list(self._records()[0])

    def read(self, split: str) -> Split:
        """Read one split. Opens no image."""
        splits, found = self._records()
        role = role_of(split)
        if role in ROLES[1:] and not {role, split} & splits.keys():
            raise DataError(
                f"{self.path}: no split '{role}'; pass data.{role}=FILE, or data.held_out=0.05 to "
                "hold out some of the images"
            )
        key = resolve_split(split, splits, str(self.path))
        path = self.files.get(key, self.path)
        records = resolve_image_paths(path, splits[key], self.images)
        texts = [record.extra.get(SECOND) for record in records]
        second = [text for text in texts if text is not None]
        notes = (*self.notes, *found.get(path, ()))
        if 0 < len(second) < len(texts):
            note = f"{len(texts) - len(second)} of {len(texts)} images of {key} have no"
            notes = (*notes, f"{path}: {note} {self.second_key}; the column is ignored")
        return Split(
            key,
            self.name,
            records,
            second=second if len(second) == len(texts) else None,
            decoder=self.decoder,
            source=str(path),
            notes=notes,
        )

    def _records(self) -> tuple[dict[str, list[Record]], dict[Path, tuple[str, ...]]]:
        """The records of each split, and the notes about each table."""
        columns = tuple(sorted({**self.columns, SECOND: self.second_key}.items()))
        splits: dict[str, list[Record]] = {}
        notes: dict[Path, tuple[str, ...]] = {}
        for split, path in self.files.items():
            stat = path.stat()
            records, notes[path] = _read_records(
                path, split, columns, stat.st_size, stat.st_mtime_ns
            )
            if common := splits.keys() & records.keys():
                raise DataError(
                    f"{path}: holds split '{min(common)}', which also has a table of its own; "
                    "remove one of them"
                )
            splits |= records
        missing = [role for role in ROLES[1:] if not splits.keys() & {role, _disk_name(role)}]
        if self.held_out and missing and "train" in splits:
            splits |= _hold_out(splits["train"], missing, self.held_out, str(self.path))
        return splits, notes


def find(data: DataConfig) -> TableLayout | None:
    """The tables that ``data`` names, otherwise those below ``data.root``; None if there are none.

    Raises DataError for a table that does not exist.
    """
    paths = {role: getattr(data, role) for role in ROLES if getattr(data, role) is not None}
    notes: tuple[str, ...] = ()
    if paths:
        if "train" not in paths:
            raise ConfigError(
                "data.train: not set, but data.val or data.test is; pass data.train=FILE"
            )
        files = {role: Path(file).expanduser() for role, file in paths.items()}
        for role, path in files.items():
            if not path.is_file():
                raise DataError(f"data.{role}={paths[role]}: no such file; pass data.{role}=FILE")
    else:
        tables = find_dataset_files([data_root(data)], FILE_NAME, data.name)
        if tables is None:
            return None
        files, notes = dict(tables.by_split), tables.notes
        for word in [word for word in WHOLE if word in files]:
            path = files.pop(word)
            if files.setdefault("train", path) is not path:
                notes = (*notes, f"{path}: is not read, since {files['train'].name} is there")
    options = (data.columns or {}, data.second_key, data.held_out, data.images, data.decoder)
    return TableLayout(files.get("train", next(iter(files.values()))), files, *options, notes)


def _disk_name(role: str) -> str:
    return {"val": "dev"}.get(role, role)


@functools.lru_cache(maxsize=3)
def _read_records(
    path: Path, split: str, columns: tuple[tuple[str, str], ...], size: int, mtime_ns: int
) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
    """Records by split, and notes; rows without a split belong to ``split``."""
    oddities = Oddities()
    entries, notes = read_entries(path, split, dict(columns), oddities)
    require_unique_images(entries)
    splits: dict[str, list[Record]] = {}
    for _, row_split, record in entries:
        splits.setdefault({"restval": "train"}.get(row_split, row_split), []).append(record)
    if not splits:
        raise DataError(f"{path}: holds no row; expected an image and a caption in each")
    return splits, (*oddities.notes(path), *notes)


def _hold_out(
    train: list[Record], roles: list[str], held_out: float, where: str
) -> dict[str, list[Record]]:
    """Split ``train`` into train and ``roles``, in the order of a hash of the image paths.

    A hash rather than a shuffle: a table that grows keeps most of its assignment.
    """
    size = int(held_out) if held_out >= 1 else max(1, round(held_out * len(train)))
    if size * len(roles) >= len(train):
        raise ConfigError(
            f"data.held_out={held_out:g}: {' and '.join(roles)} would take all {len(train)} "
            f"images of {where}; pass a smaller data.held_out"
        )
    order = sorted(range(len(train)), key=lambda n: _path_hash(train[n]))
    splits = {}
    for index, role in enumerate(reversed(roles)):
        chosen = sorted(order[index * size : (index + 1) * size])
        splits[role] = [train[n] for n in chosen]
    rest = sorted(order[len(roles) * size :])
    return {"train": [train[n] for n in rest], **dict(reversed(splits.items()))}


def _path_hash(record: Record) -> bytes:
    return hashlib.sha1(str(record.image).encode()).digest()
