"""Computes the fingerprint of a split: a few counts and a 16-digit content hash.

The hash covers ids, captions, items, second texts, names and sizes of the images, and a sample of
region rows, but not the location of the files. Equal hashes mean equal records. No image is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import Record, Slice, Split

ROWS = 64  # rows of a region array that are hashed, evenly spaced
DIGITS = 16


def describe(split: Split) -> dict[str, Any]:
    """Layout, counts and content hash of ``split``, as plain JSON values."""
    return {
        "layout": split.layout,
        "source": split.source,
        "images": split.n_images,
        "captions": split.n_captions,
        "hash": content_hash(split),
    }


def content_hash(split: Split) -> str:
    """The content hash of ``split``, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    if isinstance(split.records, ShardSamples):  # arrays, without building millions of records
        for block in _blocks(split.records):
            digest.update(block)
    else:
        for line in _lines(split.records):
            digest.update(line)
    hashed = split.records.second if isinstance(split.records, ShardSamples) else None
    if split.second is not hashed:  # second texts of a table or a separate file
        for text in split.second_texts():
            digest.update(json.dumps(text).encode() + b"\n")
    for item in split.items or ():
        digest.update(repr(item).encode())
    for item in split.items or ():
        digest.update(repr(item).encode())
    for array in (split.regions, split.guides):
        if array is not None:
            digest.update(repr((array.shape, array.dtype.str)).encode())
            rows = np.linspace(0, len(array) - 1, ROWS).astype(np.int64)
            for row in np.unique(rows).tolist():
                digest.update(array[row].tobytes())
    return digest.hexdigest()[:DIGITS]


def _blocks(samples: ShardSamples) -> Iterable[bytes]:
    yield json.dumps([os.path.basename(path) for path in samples.paths]).encode()
    for numbers in (samples.shard_ids, samples.images, samples.ids, samples.text_ids):
        yield numbers.astype(np.int64).tobytes()
    for texts in (samples.texts, samples.second):
        yield np.diff(texts.offsets).tobytes()
        yield texts.block[texts.offsets[0] : texts.offsets[-1]].tobytes()


def _lines(records: Iterable[Record]) -> Iterable[bytes]:
    for record in records:
        image = record.image
        if isinstance(image, Slice):
            location: list[Any] = [os.path.basename(image.path), image.offset, image.size]
        elif isinstance(image, str):
            location = [os.path.basename(image), os.path.getsize(image)]
        else:
            location = [int(image)]
        line = [record.image_id, location, list(record.captions), list(record.caption_ids)]
        yield json.dumps(line).encode() + b"\n"


def changed_splits(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the splits whose content differs between two manifests (split -> `describe`)."""
    return [
        name
        for name, description in before.items()
        if name in now and description.get("hash") != now[name].get("hash")
    ]
