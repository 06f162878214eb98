"""Rows of annotation files of questions, statements or expressions, and the splits they make."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from itr.data.config import DataConfig
from itr.data.ids import NAME, whole_number
from itr.data.items import Item, Question, Statement
from itr.data.layout import coco_id, data_root, list_folder
from itr.data.layouts.json_annotations import describe_value, load_json, resolve_image_paths
from itr.data.records import SEQUENTIAL_ID, Record, Split
from itr.errors import DataError
from itr.files import parse_json

FOLDERS = ("", "data", "annotations", "albef")  # below data.root, where files are looked for


class NoItemsError(DataError):
    """A folder has no files of a task."""


class Row(NamedTuple):
    """A text about a picture, or about two."""

    image: str  # relative to the picture root of its source
    text: str
    item: Item  # its ``second`` is set by `make_split`
    source: str  # key of `ItemFiles.sources` and of data.roots
    second: str | None = None  # the second picture of a pair


class Rows(NamedTuple):
    """The rows of one split on disk."""

    path: Path
    rows: list[Row]
    notes: tuple[str, ...] = ()


class ItemFiles(Protocol):
    """The annotation files of one data set."""

    @property
    def name(self) -> str:
        """Name of the format, such as ``vqa``."""
        ...

    @property
    def sources(self) -> Mapping[str, Sequence[str]]:
        """Source of pictures -> names of folders in which its pictures are looked for."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of splits, or of several splits joined with ``+``."""
        ...

    def splits(self) -> list[str]:
        """Names of the splits on disk."""
        ...

    def read(self, split: str) -> Rows:
        """The rows of ``split``, one of `splits`. Raises DataError for unusable contents."""
        ...


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """No garbage collection inside: it walks millions of new rows again and again, for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# Files


def find_file(root: Path, *names: str, folders: Sequence[str] = FOLDERS) -> Path | None:
    """The first existing file of ``names`` below ``root``; None if there is none."""
    paths = (root / folder / name for name in names for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def no_files(data: DataConfig, task: str, expected: str) -> NoItemsError:
    """The error that ``data.root`` has no files of ``task``."""
    root = data_root(data)
    return NoItemsError(
        f"data.root={data.root}: holds no items of task={task}; expected {expected}, there or in "
        f"{', '.join(f'{name}/' for name in FOLDERS if name)}. The folder holds "
        f"{list_folder(root)}. Pass data.root=DIR, or the data=NAME of this task"
    )


def load_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list or of JSON lines, each with its position for messages.

    Raises DataError for anything else, and for an empty file.
    """
    entries = _json_lines(path)
    if entries is None:
        content = load_json(path)
        if not isinstance(content, list):
            raise DataError(
                f"{path}: holds {describe_value(content)}; expected a JSON list, or one JSON "
                "object per line"
            )
        entries = [(f"{path}: [{number}]", entry) for number, entry in enumerate(content)]
    if not entries:
        raise DataError(f"{path}: holds no entry; copy or download it again")
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise DataError(f"{where}: is {describe_value(entry)}; expected an object")
        yield where, entry


def _json_lines(path: Path) -> list[tuple[str, Any]] | None:
    """The values of a file with one JSON object per line; None if it is not such a file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            if not file.readline().lstrip().startswith("{"):
                return None
            file.seek(0)
            lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
    except (OSError, UnicodeDecodeError):
        return None  # `load_json` says what is wrong
    entries = []
    for number, line in lines:
        try:
            entries.append((f"{path}, line {number}", parse_json(line)))
        except ValueError as error:
            if len(lines) == 1 or number == 1:
                return None  # one JSON value over several lines
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error}); copy or download the file again"
            ) from error
    return entries


def require_string(where: str, entry: Mapping[str, Any], *keys: str) -> str:
    """The text under the first of ``keys`` that ``entry`` has; it may be empty.

    Raises DataError, prefixed with ``where``, unless it is text.
    """
    key = next((key for key in keys if key in entry), keys[0])
    value = entry.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{key}' is {describe_value(value)}; expected text")
    return value


# Splits


def with_known_answers(rows: Rows) -> Rows:
    """The ``rows`` that a model can be trained on: with answers, or with a label.

    The others are counted in a note. Raises DataError if none is left.
    """
    known = [row for row in rows.rows if is_known(row.item)]
    left_out = len(rows.rows) - len(known)
    if not known:
        raise DataError(
            f"{rows.path}: none of its {left_out} entries has an answer or a label, so that no "
            "model can be trained on it; pass data.splits.train=NAME of another split"
        )
    if not left_out:
        return rows
    first = next(row.item.id for row in rows.rows if not is_known(row.item))
    note = (
        f"{rows.path}: {left_out} entries without an answer or a label are left out, e.g. {first}"
    )
    return Rows(rows.path, known, (*rows.notes, note))


def is_known(item: Item) -> bool:
    """Whether the answer to ``item`` is known. Grounding is trained without the answers."""
    if isinstance(item, Question):
        return bool(item.votes)
    return not isinstance(item, Statement) or item.label is not None


def make_split(name: str, parts: Sequence[Rows], data: DataConfig, files: ItemFiles) -> Split:
    """The split of all rows of ``parts``: a record per picture, an item per caption.

    Pictures are numbered in the order in which they first occur. ``Record.caption_ids`` are the
    positions of the rows. Raises DataError that counts and names missing pictures.
    """
    rows = [row for part in parts for row in part.rows]
    numbers: dict[tuple[str, str], int] = {}
    captions: list[list[int]] = []
    for position, row in enumerate(rows):
        for image in (row.image, row.second):
            if image is not None and numbers.setdefault((row.source, image), len(numbers)) == len(
                captions
            ):
                captions.append([])
        captions[numbers[row.source, row.image]].append(position)
    records = [
        _record(index, image, [rows[n] for n in captions[index]], captions[index])
        for index, (_, image) in enumerate(numbers)
    ]
    sources = [source for source, _ in numbers]
    return Split(
        name,
        files.name,
        _with_paths(records, sources, parts, data, files),
        decoder=data.decoder,
        source=" + ".join(dict.fromkeys(str(part.path) for part in parts)),
        notes=tuple(note for part in parts for note in part.notes),
        items=[_numbered(rows[n], numbers) for members in captions for n in members],
    )


def _record(index: int, image: str, rows: Sequence[Row], positions: Sequence[int]) -> Record:
    """A picture with its texts. Its id is the number in the file's name, if that is one."""
    name = os.path.splitext(os.path.basename(image))[0]
    number = coco_id(image)
    number = whole_number(name) if number is None else number
    extra = {} if number is not None else {SEQUENTIAL_ID: True, NAME: name}
    texts = tuple(row.text for row in rows)
    return Record(index if number is None else number, image, texts, tuple(positions), extra)


def _numbered(row: Row, numbers: Mapping[tuple[str, str], int]) -> Item:
    """The item of ``row``, with the index of its second picture."""
    if row.second is None:
        return row.item
    return dataclasses.replace(row.item, second=numbers[row.source, row.second])  # type: ignore[arg-type]


def _with_paths(
    records: list[Record],
    sources: Sequence[str],
    parts: Sequence[Rows],
    data: DataConfig,
    files: ItemFiles,
) -> list[Record]:
    """``records`` with absolute paths; each source has a picture root of its own."""
    found: dict[int, Record] = {}
    roots = data.roots or {}
    for source in dict.fromkeys(sources):
        path = next(part.path for part in parts if any(r.source == source for r in part.rows))
        members = [index for index, other in enumerate(sources) if other == source]
        named = roots.get(source)
        resolved = resolve_image_paths(
            path,
            [records[index] for index in members],
            data.images if named is None else named,
            files.sources.get(source, ()),
            option="data.images" if len(files.sources) == 1 else f"data.roots.{source}",
        )
        found |= dict(zip(members, resolved, strict=True))
    return [found[index] for index in range(len(records))]
