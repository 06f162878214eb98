"""What a split holds, in a few lines and sixteen hex digits: logged with every run.

The digits are a hash of ids, captions, second texts, names and sizes of the pictures, and of some
region rows; never of where the files lie. Equal digits: the same records. It opens no picture.
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

ROWS = 64  # of a region array that are hashed, evenly spread
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
    """Sixteen hex digits that name what ``split`` holds."""
    digest = hashlib.sha256()
    if isinstance(split.records, ShardSamples):  # millions of them, kept as arrays
        for block in _blocks(split.records):
            digest.update(block)
    else:
        for line in _lines(split.records):
            digest.update(line)
    own = split.records.second if isinstance(split.records, ShardSamples) else None
    if split.second is not own:  # from a table, or a side file
        for text in split.second_texts():
            digest.update(json.dumps(text).encode() + b"\n")
    for array in (split.regions, split.guides):
        if array is not None:
            digest.update(repr((array.shape, array.dtype.str)).encode())
            places = np.linspace(0, len(array) - 1, ROWS).astype(np.int64)
            for row in np.unique(places).tolist():
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
            place: list[Any] = [os.path.basename(image.path), image.offset, image.size]
        elif isinstance(image, str):
            place = [os.path.basename(image), os.path.getsize(image)]
        else:
            place = [int(image)]
        line = [record.image_id, place, list(record.captions), list(record.caption_ids)]
        yield json.dumps(line).encode() + b"\n"


def changed_splits(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the splits whose content differs between two manifests (split -> `describe`)."""
    return [
        name
        for name, found in before.items()
        if name in now and found.get("hash") != now[name].get("hash")
    ]
