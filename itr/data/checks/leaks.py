"""Detects training images that are also in a split used for evaluation."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import PurePath

import numpy as np

from itr.data.ids import NAME
from itr.data.images.decode import read_bytes
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import SEQUENTIAL_ID, Record, Slice, Split
from itr.errors import DataError, first_of

MAX_READ = 2000  # training images in tars that are read to look for copies


def check_leaks(splits: Mapping[str, Split]) -> None:
    """Raise DataError if an image of ``splits["train"]`` is also in another of ``splits``.

    Images are compared by path. If the paths differ but a name or id is equal, and in shards, they
    are compared by content. Copies under another name are not detected here; ``itr data check``
    compares all images. If the training split explicitly includes the other split (``train+val``),
    a note is added instead.
    """
    train = splits["train"]
    for role, split in splits.items():
        if role == "train":
            continue
        in_shards = train.layout == split.layout == "shards"
        shared = _shared_in_shards(train, split) if in_shards else _shared_files(train, split)
        if not shared:
            continue
        count = f"{len(shared)} of {split.n_images} images of {split.source} ({role})"
        if split.name in train.name.split("+"):
            note = f"{count} are training images, because data.splits.train={train.name}"
            splits[role].notes = (*split.notes, note)
            continue
        raise DataError(
            f"{count} are also in {train.source} (train): {first_of(shared)}. Results on them are "
            "not meaningful; remove them from one of the two splits"
        )


def _shared_files(train: Split, split: Split) -> list[str]:
    """Images of ``split`` that are in ``train``: the same file, or the same content and name."""
    files = {name for record in train.records if (name := _file(record))}
    shared = {name for record in split.records if (name := _file(record)) in files}
    if shared or not isinstance(split.records[0].image, str):
        return sorted(shared)
    by_identifier: dict[object, list[Record]] = {}
    for record in split.records:
        for identifier in _identifiers(record):
            by_identifier.setdefault(identifier, []).append(record)
    for record in train.records:
        candidates = (by_identifier.get(identifier, ()) for identifier in _identifiers(record))
        for other in itertools.chain(*candidates):
            if _digest(record) == _digest(other):
                shared.add(_file(other))
    return sorted(shared)


def _shared_in_shards(train: Split, split: Split) -> list[str]:
    """Images of ``split`` with the same content as one of ``train``.

    Only images of equal size in bytes are read. If there are many, only those that also have a
    name, id or text in common.
    """
    both_lazy = isinstance(train.records, ShardSamples) and isinstance(split.records, ShardSamples)
    if both_lazy and train.records.paths == split.records.paths:  # type: ignore[attr-defined]
        return []  # held out of the same tars, so they cannot overlap
    sizes, train_sizes = _sizes(split.records), _sizes(train.records)
    candidates = np.flatnonzero(np.isin(train_sizes, sizes)).tolist()
    if len(candidates) > MAX_READ:
        known = {(_size(r), identifier) for r in split.records for identifier in _identifiers(r)}
        candidates = [n for n in candidates if _matches(train.records[n], known)][:MAX_READ]
    digests = {_digest(train.records[number]) for number in candidates}
    same_size = np.flatnonzero(np.isin(sizes, train_sizes[candidates])).tolist()
    return [
        f"{PurePath(record.image[0]).name}: {record.extra['key']}"  # type: ignore[index]
        for record in (split.records[number] for number in same_size)
        if _digest(record) in digests
    ]


def _matches(record: Record, known: Set[tuple[int, object]]) -> bool:
    return any((_size(record), identifier) in known for identifier in _identifiers(record))


def _sizes(records: Sequence[Record]) -> np.ndarray:
    """Size of each image in a tar in bytes, int64 [N]."""
    if isinstance(records, ShardSamples):
        return records.images[:, 1]
    return np.array([_size(record) for record in records], np.int64)


def _size(record: Record) -> int:
    assert isinstance(record.image, Slice)
    return record.image.size


def _identifiers(record: Record) -> Iterator[object]:
    """Values that two records of the same image may have in common."""
    yield "name", PurePath(_file(record)).name
    if SEQUENTIAL_ID not in record.extra:
        yield "id", record.image_id
    elif NAME in record.extra:
        yield "id", record.extra[NAME]
    if isinstance(record.image, Slice) and record.captions:
        yield "text", record.captions[0]


def _digest(record: Record) -> bytes:
    return hashlib.blake2b(read_bytes(record.image), digest_size=16).digest()


def _file(record: Record) -> str:
    """The path of an image, or its name inside another file; empty if it has none."""
    if isinstance(record.image, str):
        return record.image
    return str(record.extra.get("file", ""))
