"""Reader for tables of image-caption pairs: CSV, TSV, JSON lines or Parquet.

Rows with the same ``image`` form one record, in the order in which images first occur. A column
``split`` assigns rows to splits. Without it, val and test have tables of their own or are held out
of the training table.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

from itr.data.config import DataConfig
from itr.data.layout import (
    SECOND,
    LayoutSpec,
    data_root,
    find_dataset_files,
    list_folder,
    second_texts,
)
from itr.data.layouts.held_out_images import hold_out
from itr.data.layouts.json_annotations import (
    require_unique_images,
    resolve_image_paths,
)
from itr.data.layouts.tables.delimited import Oddities
from itr.data.layouts.tables.table_rows import NO_IMAGE, read_entries
from itr.data.layouts.tables.tabular import ENDINGS, parts_of
from itr.data.parquet_images import image_column
from itr.data.records import Record, Slice, Split
from itr.data.splits import (
    PATTERN,
    ROLES,
    held_out_roles,
    resolve_split,
    role_of,
)
from itr.errors import DataError, nearest

ENDING = "|".join(map(re.escape, ENDINGS))
# Tables without a split in their names, preferred ones first: those that Flickr8K and Flickr30K
# are published with, and NAME_caps.tsv.
WHOLE = ("pairs", "metadata", "captions", "caps", "token", "results")
FILE_NAME = re.compile(
    r"(?:(?P<name>.+?)[-_.])??(?P<split>"
    rf"(?:{PATTERN}|pairs)(?=(?:_caps|_captions)?(?:-00000-of-\d{{5}})?(?:{ENDING})$)"
    rf"|(?<![-_.])(?:{PATTERN})(?=\.json$)|metadata(?=(?:{ENDING})$)"
    r"|captions(?=\.txt$)|caps(?=\.tsv$)|token(?=(?:\.txt)?$)|results(?=\.csv$))"
    r".*",
    re.IGNORECASE,
)
OPTIONS = ("second_key", "held_out", "images", "decoder", "max_broken")  # of data
LAYOUT = LayoutSpec("table", "pixels", 5, "train.csv (or .tsv, .jsonl, .parquet)", second=True)


@dataclass(frozen=True)
class TableLayout:
    """The tables of a dataset, by split. The one of ``train`` may hold several splits."""

    path: Path
    files: dict[str, Path]
    columns: dict[str, str] = field(default_factory=dict)
    second_key: str = "synthetic_caption"
    held_out: float | str | None = 0
    images: str | None = None
    decoder: str = "torchvision"
    max_broken: float = 0.01
    notes: tuple[str, ...] = ()
    name: str = "table"
    kind: str = "pixels"

    def splits(self) -> dict[str, int]:
        """The splits of the tables, held-out ones included, and their numbers of images."""
        return {name: len(records) for name, records in self._records()[0].items()}

    def read(self, split: str) -> Split:
        """Read one split. Opens no image."""
        splits, found = self._records()
        key = resolve_split(split, splits, str(self.path), self._advice(split))
        path = self.files.get(key, self.path)
        spellings: list[str] = []
        records = splits[key]
        if not isinstance(records[0].image, Slice):  # images in the table need no file
            records = resolve_image_paths(path, records, self.images, notes=spellings)
        remark = f"{key} have no {self.second_key}; the column is ignored"
        second, missing = second_texts(records, str(path), remark)
        return Split(
            key,
            self.name,
            records,
            second=second,
            decoder=self.decoder,
            source=str(path),
            notes=(*self.notes, *found.get(path, ()), *spellings, *missing),
        )

    def _advice(self, split: str) -> str:
        role = role_of(split)
        if role not in ROLES:
            return ""
        other = ", or data.held_out=0.05 to hold out images of train" if role != "train" else ""
        return f", data.{role}=FILE{other}"

    def _records(self) -> tuple[dict[str, list[Record]], dict[Path, tuple[str, ...]]]:
        """The records of each split, and the notes about each table."""
        columns = tuple(sorted({**self.columns, SECOND: self.second_key}.items()))
        splits: dict[str, list[Record]] = {}
        notes: dict[Path, tuple[str, ...]] = {}
        for split, path in self.files.items():
            stats = tuple((s.st_size, s.st_mtime_ns) for s in map(Path.stat, parts_of(path)))
            records, notes[path] = _read_records(path, split, columns, self.max_broken, stats)
            named = role_of(next(iter(records)))
            others = {role_of(other) for other in self.files if other != split}
            if len(records) == 1 and named != role_of(split) and named in others:
                # The hub's files of one split may say "train" in a column that means nothing.
                ((column, only),) = records.items()
                note = f"{path}: its column split says '{column}' in every row"
                notes[path] = (*notes[path], f"{note}; the name of the file counts: {split}")
                records = {split: only}
            if common := splits.keys() & records.keys():
                raise DataError(
                    f"{path}: holds split '{min(common)}', which also has a table of its own; "
                    "remove one of them"
                )
            splits |= records
        if missing := held_out_roles(splits, self.held_out):
            train = resolve_split("train", splits, str(self.path))
            parts = hold_out(splits.pop(train), missing, self.held_out, str(self.path))
            path = self.files.get(train, self.path)
            count = f"{len(parts[missing[0]])} of {sum(map(len, parts.values()))} images of train"
            note = f"{path}: no {' and '.join(missing)}: {count} are held out for each"
            notes[path] = (*notes.get(path, ()), f"{note} (data.held_out)")
            splits = {train: parts.pop("train"), **splits, **parts}
        return splits, notes


def find(data: DataConfig) -> TableLayout | None:
    """The tables that ``data`` names, otherwise those below ``data.root``; None if there are none.

    Raises DataError for a table that does not exist.
    """
    paths = {role: getattr(data, role) for role in ROLES if getattr(data, role) is not None}
    notes: tuple[str, ...] = ()
    if paths:
        files = {role: Path(file).expanduser() for role, file in paths.items()}
        for role, path in files.items():
            if path.is_dir():
                raise DataError(
                    f"data.{role}={paths[role]}: is a folder; pass the table in it, or "
                    f"data.root={paths[role]} to search it for any layout"
                )
            if not path.is_file():
                there = f"; {path.parent} holds {list_folder(path.parent)}"
                raise DataError(
                    f"data.{role}={paths[role]}: no such file{nearest(path.name, _names(path))}"
                    f"{there if path.parent.is_dir() else ''}. Pass data.{role}=FILE"
                )
    else:
        root = data_root(data)
        tables = find_dataset_files([root, root / "data"], FILE_NAME, data.name)
        if tables is None and not _holds_numbered_images(root):
            return None
        files = {"train": root} if tables is None else dict(tables.by_split)
        notes = () if tables is None else tables.notes
        for word in [word for word in WHOLE if word in files]:
            path = files.pop(word)
            if files.setdefault("train", path) is not path:
                notes = (*notes, f"{path}: is not read, since {files['train'].name} is there")
    options = {key: getattr(data, key) for key in OPTIONS}
    main = files.get("train", next(iter(files.values())))
    return TableLayout(main, files, data.columns or {}, notes=notes, **options)


def _holds_numbered_images(folder: Path) -> bool:
    """Whether ``folder`` is what img2dataset writes as Parquet, with the images."""
    parts = parts_of(folder)
    return bool(parts) and image_column(str(parts[0])) is not None


def _names(path: Path) -> list[str]:
    """The names of the files beside ``path``."""
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


@functools.lru_cache(maxsize=3)
def _read_records(
    path: Path,
    split: str,
    columns: tuple[tuple[str, str], ...],
    max_broken: float,
    stats: tuple[tuple[int, int], ...],
) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
    """Records by split, and notes; rows without a split belong to ``split``."""
    oddities = Oddities()
    entries, notes = read_entries(path, split, dict(columns), oddities)
    lost = oddities.left_out.get(NO_IMAGE, [])
    if len(lost) > max_broken * oddities.rows:
        raise DataError(
            f"{path}: {len(lost)} of {oddities.rows} rows hold no image (first: {lost[0]}); that "
            f"is more than data.max_broken={max_broken:g} allows. Download the file again, or pass "
            "a larger data.max_broken"
        )
    require_unique_images(entries)
    splits: dict[str, list[Record]] = {}
    for _, row_split, record in entries:
        splits.setdefault(row_split, []).append(record)
    if not splits:
        raise DataError(f"{path}: holds no row; expected an image and a caption in each")
    return splits, (*oddities.notes(path), *notes)
