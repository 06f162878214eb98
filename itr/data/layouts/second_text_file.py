"""A second text of each image from a side file, joined by key, file or image id. N images."""

from __future__ import annotations

import dataclasses
import itertools
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from itr.data.layouts.shards.samples import ShardSamples
from itr.data.layouts.tabular import ENDINGS, read_rows
from itr.data.records import OTHER_CAPTION, SEQUENTIAL_ID, Record, Split
from itr.errors import DataError

SHOWN = 3
CHUNK = 100_000  # entries looked up at a time
KEY, ID = "key", "image_id"  # columns that say what they hold
COLUMNS = (  # of a table that gives second texts: key, caption
    (KEY, ID, "id", "image", "file", "file_name", "filename", "filepath"),
    ("synthetic_caption", "caption", "text"),
)


class Names(NamedTuple):
    """What a file may call an image, the most telling first; empty: it has no such name."""

    key: str = ""  # of a sample in a tar
    file: str = ""  # path of the picture
    name: str = ""  # of the picture's file, without its folder
    id: str = ""  # where a file gives one
    number: str = ""  # the key without leading zeros, as a column of numbers holds it


KINDS = Names._fields


class Entry(NamedTuple):
    """One line of a side file."""

    column: str | None  # that the key stands in; None: it stands in no table
    key: str
    text: str


def join_second(path: Path, split: Split, max_broken: float) -> Split:
    """``split`` with a second text of each image from a file.

    The file is a JSON object key -> caption, or a table (.jsonl, .csv, .tsv, .parquet) with a
    column of each; a key is the key of a sample in shards, the name of the picture's file, or an
    image id that the data set's own files give. Raises DataError for a file that cannot be read, a
    key that fits several images, and images that it leaves out; of shards those are left out and
    counted, up to the share ``max_broken``.
    """
    found, keys = _joined(path, split.records)
    having = np.array([text is not None for text in found])
    second = [text for text in found if text is not None]
    if len(second) == len(found):
        return dataclasses.replace(split, second=second)
    samples, lost = split.records, np.flatnonzero(~having)
    tars = isinstance(samples, ShardSamples)
    called = [_called(samples[int(n)]) for n in lost[:SHOWN]]
    more = ", ..." if len(lost) > SHOWN else ""
    names = f"{called[0][0]}s {', '.join(name for _, name in called)}{more}"
    told = f"{path}: no caption for {len(lost)} of {len(found)} images ({names})"
    if not isinstance(samples, ShardSamples) or len(lost) > max_broken * len(found):
        more = f", more than data.max_broken={max_broken} allows" if tars else ""
        raise DataError(f"{told}{more}; its keys look like {', '.join(keys) or 'nothing'}")
    return dataclasses.replace(
        split,
        records=samples.only(having),
        second=second,
        notes=(*split.notes, f"{told}: left out"),
    )


def _called(record: Record) -> tuple[str, str]:
    """What to call an image in a message: kind of name, name."""
    if key := record.extra.get("key"):
        return "key", str(key)
    if SEQUENTIAL_ID not in record.extra:
        return "id", str(record.image_id)
    return "file", Path(str(record.extra.get("file") or record.image)).name


def _all_names(records: Sequence[Record]) -> Iterator[Names]:
    """What each record is called; samples of shards, which are many, are not made for it."""
    if isinstance(records, ShardSamples):
        rows = zip(
            records.keys, records.names, records.ids.tolist(), records.given.tolist(), strict=True
        )
    else:
        rows = (
            (
                str(record.extra.get("key", "")),
                str(record.extra.get("file") or _path(record)),
                record.image_id,
                SEQUENTIAL_ID not in record.extra,
            )
            for record in records
        )  # type: ignore[assignment]
    for key, file, number, given in rows:
        folder, _, name = file.rpartition("/")
        yield Names(key, file, folder and name, str(number) if given else "", _number(key))


def _path(record: Record) -> str:
    return record.image if isinstance(record.image, str) else ""


def _number(key: str) -> str:
    """``key`` as a number is written; empty: it is none."""
    return (key.lstrip("0") or "0") if key.isascii() and key.isdigit() else ""


class _Index:
    """The images by what a file may call them.

    Names are compared by their hashes, 8 bytes each: records may be millions.
    """

    def __init__(self, path: Path, records: Sequence[Record]):
        self.path, self.records = path, records
        hashes = {kind: array("q") for kind in KINDS}
        places = {kind: array("q") for kind in KINDS}
        for place, names in enumerate(_all_names(records)):
            for kind, name in zip(KINDS, names, strict=True):
                if name:
                    hashes[kind].append(hash(name))
                    places[kind].append(place)
        self.known, self.owner = {}, {}
        for kind in KINDS:
            found = np.array(hashes.pop(kind), np.int64)
            order = np.argsort(found, kind="stable")
            self.known[kind] = found[order]
            self.owner[kind] = np.array(places.pop(kind), np.int64)[order]
        self.met: dict[str, str] = {}  # an example of keys that are an id alone, or a number alone

    def owners(self, entries: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
        """Whose entries these are, int64 [n] (-1: nobody's), and by which of `KINDS`.

        A column ``key`` holds no image ids, and a column ``image_id`` no keys, where the data set
        has its own. Raises DataError for an entry that fits several images.
        """
        column, keys = entries[0].column, [entry.key for entry in entries]
        kinds = list(KINDS)
        if column == KEY and len(self.known["key"]):
            kinds.remove("id")
        if column == ID and len(self.known["id"]):
            kinds = ["file", "name", "id"]
        own = np.full(len(keys), -1)
        by = np.full(len(keys), len(KINDS))
        for kind in kinds[: kinds.index("number")] if "number" in kinds else kinds:
            found = self._look_up(kind, keys, own < 0)
            by[found >= 0] = KINDS.index(kind)
            own = np.where(found >= 0, found, own)
        if "number" in kinds:
            number = self._look_up("number", keys, (own < 0) | (by == KINDS.index("id")))
            self._require_one_kind(keys, np.where(by == KINDS.index("id"), own, -1), number)
            by[(own < 0) & (number >= 0)] = KINDS.index("number")
            own = np.where(own < 0, number, own)
        return own, by

    def _look_up(self, kind: str, keys: Sequence[str], asked: np.ndarray) -> np.ndarray:
        """Whose ``keys`` are, as names of one ``kind``, where ``asked``; -1: nobody's."""
        known = self.known[kind]
        found = np.full(len(keys), -1)
        if not len(known):
            return found
        wanted = np.array([hash(_number(k) if kind == "number" else k) for k in keys], np.int64)
        first, last = (np.searchsorted(known, wanted, side) for side in ("left", "right"))
        hit = asked & (last > first)
        if (several := np.flatnonzero(hit & (last > first + 1))).size:
            place = int(several[0])
            owners = self.owner[kind][first[place] : last[place]].tolist()
            self._refuse(keys[place], owners, f"{len(owners)} images")
        found[hit] = self.owner[kind][first[hit]]
        return found

    def _require_one_kind(self, keys: Sequence[str], ids: np.ndarray, numbers: np.ndarray) -> None:
        """Ids and keys without their zeros look alike: raise DataError unless all are one kind."""
        differing = np.flatnonzero((ids >= 0) & (numbers >= 0) & (ids != numbers))
        if differing.size:
            place = int(differing[0])
            both = [int(ids[place]), int(numbers[place])]
            self._refuse(keys[place], both, "the image id of one image and the key of another")
        for kind, own, other in (("id", ids, numbers), ("key", numbers, ids)):
            alone = np.flatnonzero((own >= 0) & (other < 0))
            if alone.size:
                self.met.setdefault(kind, keys[int(alone[0])])
        if len(self.met) > 1:
            raise DataError(
                f"{self.path}: '{self.met['id']}' is an image id, '{self.met['key']}' a key "
                f"without its leading zeros; write a table with a column '{KEY}' or '{ID}'"
            )

    def _refuse(self, key: str, owners: Sequence[int], what: str) -> None:
        shown = ", ".join(self._place(owner) for owner in owners[:SHOWN])
        raise DataError(
            f"{self.path}: '{key}' fits {what} ({shown}); write a table whose column '{KEY}', "
            f"'{ID}' or 'file' holds what only one image has"
        )

    def _place(self, number: int) -> str:
        record = self.records[number]
        where = f"{Path(record.image[0]).name}: " if isinstance(record.image, tuple) else ""
        return f"{where}{' '.join(_called(record))}"


def _joined(path: Path, records: Sequence[Record]) -> tuple[list[str | None], list[str]]:
    """The text of each record (None: there is none), and the first keys of the file.

    Where two entries are of one image, the one with the more telling name counts, then the later.
    """
    index = _Index(path, records)
    found: list[str | None] = [None] * len(records)
    best = np.full(len(records), len(KINDS))
    shown: list[str] = []
    entries = _entries(path)
    while chunk := list(itertools.islice(entries, CHUNK)):
        shown += [entry.key for entry in chunk[: SHOWN - len(shown)]]
        owners, kinds = index.owners(chunk)
        for entry, owner, kind in zip(chunk, owners.tolist(), kinds.tolist(), strict=True):
            if owner >= 0 and kind <= best[owner]:
                found[owner], best[owner] = entry.text, kind
    return found, shown


def _entries(path: Path) -> Iterator[Entry]:
    """Each entry of the file that has a caption."""
    if path.suffix.lower() in ENDINGS:
        columns: tuple[str, str] | None = None
        for where, row in read_rows(path):
            columns = columns or _columns(where, row)
            key, text = row.get(columns[0]), row.get(columns[1])
            if isinstance(key, float) and key.is_integer():  # a column of numbers with gaps
                key = int(key)
            if key not in (None, "") and isinstance(text, str) and text.strip():
                yield Entry(columns[0], str(key), text.strip())
        return
    try:
        texts = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(
            f"data.second_text={path}: cannot be read ({error.strerror}); expected a file of "
            f"captions, or {OTHER_CAPTION}"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: no complete JSON ({error})") from error
    if not isinstance(texts, dict):
        raise DataError(f"{path}: holds a {type(texts).__name__}; expected image id -> caption")
    for key, text in texts.items():
        if isinstance(text, str) and text.strip():
            yield Entry(None, key, text.strip())


def _columns(where: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of key and caption."""
    chosen = [next((name for name in names if name in row), None) for names in COLUMNS]
    key, text = chosen
    if key is None or text is None:
        wanted = [names for names, own in zip(COLUMNS, chosen, strict=True) if own is None]
        raise DataError(
            f"{where}: has no column {' or '.join(wanted[0])}; its columns: {', '.join(row)}"
        )
    return key, text
