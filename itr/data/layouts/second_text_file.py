"""Reads a second text per image from a file, joined by sample key, file name or image id.

N images; the file may have any number of entries.
"""

from __future__ import annotations

import dataclasses
import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from itr.data.ids import NAME
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.layouts.tables.delimited import Oddities
from itr.data.layouts.tables.tabular import READABLE, read_rows
from itr.data.records import OTHER_CAPTION, SEQUENTIAL_ID, Record, Split
from itr.errors import DataError, first_of
from itr.files import parse_json

MAX_LISTED = 3
CHUNK = 100_000  # entries looked up at a time
KEY, ID = "key", "image_id"  # columns whose name says which kind of name they hold
COLUMNS = (  # of a table with second texts: names of the key column, of the caption column
    (KEY, ID, "id", "image", "file", "file_name", "filename", "filepath"),
    ("synthetic_caption", "caption", "text"),
)


class ImageNames(NamedTuple):
    """The names by which a file may refer to an image, most specific first; empty if none."""

    key: str = ""  # sample key in a tar
    file: str = ""  # image path
    name: str = ""  # image file name, without the folder
    id: str = ""  # image id, if a file gives one
    number: str = ""  # the key without leading zeros, as a column of integers holds it


KINDS = ImageNames._fields


class SecondTextEntry(NamedTuple):
    """One entry of the file."""

    column: str | None  # name of the key column; None for JSON
    key: str
    text: str


def join_second(path: Path, split: Split, max_broken: float) -> Split:
    """``split`` with a second text per image, read from a file.

    The file is a JSON object key -> caption, or a table (.jsonl, .csv, .tsv, .parquet) with a key
    column and a caption column. A key is the sample key in shards, the image file name, or an image
    id that the dataset's files give. Images of shards that have no entry are left out and counted,
    up to the share ``max_broken``.

    Raises DataError for an unreadable file, a key that matches several images, and images without
    an entry.
    """
    oddities = Oddities()
    texts, first_keys = _join(path, split.records, oddities)
    split = dataclasses.replace(split, notes=(*split.notes, *oddities.notes(path)))
    has_text = np.array([text is not None for text in texts])
    second = [text for text in texts if text is not None]
    if len(second) == len(texts):
        return dataclasses.replace(split, second=second)
    records, missing = split.records, np.flatnonzero(~has_text)
    in_shards = isinstance(records, ShardSamples)
    labels = [_label(records[int(n)]) for n in missing[:MAX_LISTED]]
    names = f"{labels[0][0]}s {', '.join(name for _, name in labels)}"
    more = ", ..." if len(missing) > MAX_LISTED else ""
    message = f"{path}: no caption for {len(missing)} of {len(texts)} images ({names}{more})"
    if not isinstance(records, ShardSamples) or len(missing) > max_broken * len(texts):
        limit = f", more than data.max_broken={max_broken} allows" if in_shards else ""
        raise DataError(
            f"{message}{limit}. Add them; the keys in the file look like "
            f"{', '.join(first_keys) or 'nothing'}"
        )
    return dataclasses.replace(
        split,
        records=records.only(has_text),
        second=second,
        notes=(*split.notes, f"{message}: left out"),
    )


def _label(record: Record) -> tuple[str, str]:
    """(kind of name, name) of an image, for a message."""
    if key := record.extra.get("key"):
        return "key", str(key)
    if SEQUENTIAL_ID not in record.extra or NAME in record.extra:
        return "id", str(record.extra.get(NAME, record.image_id))
    return "file", Path(str(record.extra.get("file") or record.image)).name


def _all_names(records: Sequence[Record]) -> Iterator[ImageNames]:
    """The names of each record. Builds no records for shards, which may hold millions."""
    if isinstance(records, ShardSamples):
        rows = zip(
            records.keys, records.names, records.ids.tolist(), records.has_id.tolist(), strict=True
        )
    else:
        rows = (
            (
                str(record.extra.get("key", "")),
                str(record.extra.get("file") or _path_of(record)),
                record.extra.get(NAME, record.image_id),
                SEQUENTIAL_ID not in record.extra or NAME in record.extra,
            )
            for record in records
        )  # type: ignore[assignment]
    for key, file, image_id, has_id in rows:
        folder, _, name = file.rpartition("/")
        yield ImageNames(
            key, file, folder and name, str(image_id) if has_id else "", _without_zeros(key)
        )


def _path_of(record: Record) -> str:
    return record.image if isinstance(record.image, str) else ""


def _without_zeros(key: str) -> str:
    """A numeric ``key`` without leading zeros; empty if it is not numeric."""
    return (key.lstrip("0") or "0") if key.isascii() and key.isdigit() else ""


class _NameIndex:
    """Looks up images by name.

    Names are compared by their hashes, 8 bytes each, because there may be millions of records.
    """

    def __init__(self, path: Path, records: Sequence[Record]):
        self.path, self.records = path, records
        hashes = {kind: array("q") for kind in KINDS}
        images = {kind: array("q") for kind in KINDS}
        for image, names in enumerate(_all_names(records)):
            for kind, name in zip(KINDS, names, strict=True):
                if name:
                    hashes[kind].append(hash(name))
                    images[kind].append(image)
        self.hashes, self.images = {}, {}  # by kind: sorted hashes, the image of each
        for kind in KINDS:
            unsorted = np.array(hashes.pop(kind), np.int64)
            order = np.argsort(unsorted, kind="stable")
            self.hashes[kind] = unsorted[order]
            self.images[kind] = np.array(images.pop(kind), np.int64)[order]
        self.examples: dict[str, str] = {}  # a key that is only an id, a key that is only a number

    def look_up(self, entries: Sequence[SecondTextEntry]) -> tuple[np.ndarray, np.ndarray]:
        """Image index of each entry, int64 [n] (-1: none), and index of the matching `KINDS`.

        A column ``key`` never holds image ids, and a column ``image_id`` never keys, if the dataset
        has both. Raises DataError for an entry that matches several images.
        """
        column, keys = entries[0].column, [entry.key for entry in entries]
        kinds = list(KINDS)
        if column == KEY and len(self.hashes["key"]):
            kinds.remove("id")
        if column == ID and len(self.hashes["id"]):
            kinds = ["file", "name", "id"]
        images = np.full(len(keys), -1)
        matched = np.full(len(keys), len(KINDS))
        for kind in kinds[: kinds.index("number")] if "number" in kinds else kinds:
            hits = self._look_up_kind(kind, keys, images < 0)
            matched[hits >= 0] = KINDS.index(kind)
            images = np.where(hits >= 0, hits, images)
        if "number" in kinds:
            by_id = matched == KINDS.index("id")
            numbers = self._look_up_kind("number", keys, (images < 0) | by_id)
            self._require_unambiguous(keys, np.where(by_id, images, -1), numbers)
            matched[(images < 0) & (numbers >= 0)] = KINDS.index("number")
            images = np.where(images < 0, numbers, images)
        return images, matched

    def _look_up_kind(self, kind: str, keys: Sequence[str], mask: np.ndarray) -> np.ndarray:
        """Image index of ``keys`` as names of one ``kind``, where ``mask``; -1 elsewhere."""
        hashes = self.hashes[kind]
        images = np.full(len(keys), -1)
        if not len(hashes):
            return images
        names = [hash(_without_zeros(k) if kind == "number" else k) for k in keys]
        first, last = (
            np.searchsorted(hashes, np.array(names, np.int64), side) for side in ("left", "right")
        )
        hit = mask & (last > first)
        if (ambiguous := np.flatnonzero(hit & (last > first + 1))).size:
            entry = int(ambiguous[0])
            matches = self.images[kind][first[entry] : last[entry]].tolist()
            self._refuse(keys[entry], matches, f"{len(matches)} images")
        images[hit] = self.images[kind][first[hit]]
        return images

    def _require_unambiguous(
        self, keys: Sequence[str], by_id: np.ndarray, by_number: np.ndarray
    ) -> None:
        """Raise DataError unless numeric keys are all image ids or all sample keys.

        An id looks like a sample key that lost its leading zeros, so a mixture is ambiguous.
        """
        conflicts = np.flatnonzero((by_id >= 0) & (by_number >= 0) & (by_id != by_number))
        if conflicts.size:
            entry = int(conflicts[0])
            both = [int(by_id[entry]), int(by_number[entry])]
            self._refuse(keys[entry], both, "the image id of one image and the key of another")
        for kind, matches, others in (("id", by_id, by_number), ("key", by_number, by_id)):
            only = np.flatnonzero((matches >= 0) & (others < 0))
            if only.size:
                self.examples.setdefault(kind, keys[int(only[0])])
        if len(self.examples) > 1:
            raise DataError(
                f"{self.path}: '{self.examples['id']}' is an image id, but "
                f"'{self.examples['key']}' is a key without its leading zeros; write a table with "
                f"a column '{KEY}' or '{ID}'"
            )

    def _refuse(self, key: str, images: Sequence[int], what: str) -> None:
        listed = first_of([self._describe(image) for image in images])
        raise DataError(
            f"{self.path}: '{key}' matches {what} ({listed}); write a table whose column '{KEY}', "
            f"'{ID}' or 'file' identifies each image"
        )

    def _describe(self, image: int) -> str:
        record = self.records[image]
        where = f"{Path(record.image[0]).name}: " if isinstance(record.image, tuple) else ""
        return f"{where}{' '.join(_label(record))}"


def _join(
    path: Path, records: Sequence[Record], oddities: Oddities
) -> tuple[list[str | None], list[str]]:
    """The text of each record (None: no entry), and the first keys of the file.

    If several entries match an image, the more specific kind of name wins, then the later entry.
    """
    index = _NameIndex(path, records)
    texts: list[str | None] = [None] * len(records)
    best_kind = np.full(len(records), len(KINDS))
    first_keys: list[str] = []
    entries = _read_entries(path, oddities)
    while chunk := list(itertools.islice(entries, CHUNK)):
        first_keys += [entry.key for entry in chunk[: MAX_LISTED - len(first_keys)]]
        images, kinds = index.look_up(chunk)
        for entry, image, kind in zip(chunk, images.tolist(), kinds.tolist(), strict=True):
            if image >= 0 and kind <= best_kind[image]:
                texts[image], best_kind[image] = entry.text, kind
    return texts, first_keys


def _read_entries(path: Path, oddities: Oddities) -> Iterator[SecondTextEntry]:
    """The entries of the file that have a caption."""
    if path.suffix.lower() in READABLE and path.suffix.lower() != ".json":
        yield from _read_table(path, oddities)
        return
    try:
        texts = parse_json(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(
            f"data.second_text={path}: cannot be read ({error.strerror}); expected a file of "
            f"captions, or {OTHER_CAPTION}"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(texts, dict):
        raise DataError(
            f"{path}: holds a {type(texts).__name__}; expected an object key -> caption"
        )
    for key, text in texts.items():
        if isinstance(text, str) and text.strip():
            yield SecondTextEntry(None, key, text.strip())


def _read_table(path: Path, oddities: Oddities) -> Iterator[SecondTextEntry]:
    columns: tuple[str, str] | None = None
    for where, row in read_rows(path, oddities):
        columns = columns or _choose_columns(where, row)
        key, text = row.get(columns[0]), row.get(columns[1])
        if isinstance(key, float) and key.is_integer():  # an integer column with missing values
            key = int(key)
        if key not in (None, "") and isinstance(text, str) and text.strip():
            yield SecondTextEntry(columns[0], str(key), text.strip())


def _choose_columns(where: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the key column and the caption column."""
    key, text = (next((name for name in names if name in row), None) for names in COLUMNS)
    if key is None or text is None:
        expected = COLUMNS[0] if key is None else COLUMNS[1]
        raise DataError(
            f"{where}: no column {' or '.join(expected)}; its columns: {', '.join(row)}"
        )
    return key, text
