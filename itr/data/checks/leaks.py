"""Pictures that training shares with the splits it is judged on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import PurePath

import numpy as np

from itr.data.images.decode import read_bytes
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import SEQUENTIAL_ID, Record, Slice, Split
from itr.errors import DataError

SHOWN = 3
READ = 2000  # training pictures of tars that are read, at most, to look for copies


def check_leaks(splits: Mapping[str, Split]) -> None:
    """Raise DataError if a picture of ``splits["train"]`` is also in another of ``splits``.

    Pictures are compared by their files, and where those differ, but a name or id is the same, and
    in shards, by their bytes. Copies under another name are left to the doctor, which reads all.
    Where the training split was joined from others by name (``train+val``), those may overlap: a
    note says so.
    """
    train = splits["train"]
    for role, split in splits.items():
        if role == "train":
            continue
        in_tars = train.layout == split.layout == "shards"
        shared = _in_tars(train, split) if in_tars else _by_name(train, split)
        if not shared:
            continue
        told = f"{len(shared)} of {split.n_images} pictures of {split.source} ({role})"
        if split.name in train.name.split("+"):
            note = f"{told} are trained on, as data.splits.train={train.name} says"
            splits[role].notes = (*split.notes, note)
            continue
        shown = ", ".join(shared[:SHOWN]) + (", ..." if len(shared) > SHOWN else "")
        raise DataError(
            f"{told} are also in {train.source} (train): {shown}. Results on them would mean "
            "nothing: remove them from one of the two"
        )


def _by_name(train: Split, split: Split) -> list[str]:
    """Pictures of ``split`` that are the same file as one of ``train``, or have its bytes and its
    name or id."""
    files = {name for record in train.records if (name := _file(record))}
    shared = {name for record in split.records if (name := _file(record)) in files}
    if shared or not isinstance(split.records[0].image, str):
        return sorted(shared)
    wanted: dict[object, list[Record]] = {}
    for record in split.records:
        for mark in _marks(record):
            wanted.setdefault(mark, []).append(record)
    for record in train.records:
        for other in itertools.chain(*(wanted.get(mark, ()) for mark in _marks(record))):
            if _digest(record) == _digest(other):
                shared.add(_file(other))
    return sorted(shared)


def _in_tars(train: Split, split: Split) -> list[str]:
    """Pictures of ``split`` that have the bytes of one of ``train``.

    Only pictures of as many bytes are read; where those are many, only with a text, name or id that
    is equal, too.
    """
    whole = isinstance(train.records, ShardSamples) and isinstance(split.records, ShardSamples)
    if whole and train.records.paths == split.records.paths:  # type: ignore[attr-defined]
        return []  # parts of the same tars, which never overlap
    own = _sizes(split.records)
    found = _sizes(train.records)
    alike = np.flatnonzero(np.isin(found, own)).tolist()
    if len(alike) > READ:
        wanted = {(_size(r), mark) for r in split.records for mark in _marks(r)}
        alike = [n for n in alike if _is_wanted(train.records[n], wanted)][:READ]
    read = {_digest(train.records[number]) for number in alike}
    return [
        f"{PurePath(record.image[0]).name}: {record.extra['key']}"  # type: ignore[index]
        for record in (
            split.records[n] for n in np.flatnonzero(np.isin(own, found[alike])).tolist()
        )
        if _digest(record) in read
    ]


def _is_wanted(record: Record, wanted: Set[tuple[int, object]]) -> bool:
    return any((_size(record), mark) in wanted for mark in _marks(record))


def _sizes(records: Sequence[Record]) -> np.ndarray:
    """Bytes of each picture inside a tar, int64 [N]."""
    if isinstance(records, ShardSamples):
        return records.images[:, 1]
    return np.array([_size(record) for record in records], np.int64)


def _size(record: Record) -> int:
    assert isinstance(record.image, Slice)
    return record.image.size


def _marks(record: Record) -> Iterator[object]:
    """What two records of one picture may share."""
    file = _file(record)
    yield "name", PurePath(file).name
    if SEQUENTIAL_ID not in record.extra:
        yield "id", record.image_id
    if isinstance(record.image, Slice):
        yield "text", record.captions[0]


def _digest(record: Record) -> bytes:
    return hashlib.blake2b(read_bytes(record.image), digest_size=16).digest()


def _file(record: Record) -> str:
    """What tells a picture from others: its path, or its name inside a file (empty: no name)."""
    if isinstance(record.image, str):
        return record.image
    return str(record.extra.get("file", ""))
