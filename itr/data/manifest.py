"""What a split holds, as one number: results and stored embeddings name the data they are of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from itr.data.images import read_bytes
from itr.data.records import Split

CHUNK_BYTES = 16 << 20


def manifest(split: Split) -> str:
    """SHA-256 (64 hex digits) of the ids, captions and image content of ``split``, in its order.

    Where the files lie and what they are called does not count. Raises DataError for a picture
    that cannot be read.
    """
    digest = hashlib.sha256()
    for record in split.records:
        line = [record.image_id, list(record.caption_ids), list(record.captions)]
        digest.update(json.dumps(line).encode())
        if split.regions is None and not isinstance(record.image, int):
            digest.update(hashlib.sha256(read_bytes(record.image)).digest())
    for array in (split.regions, split.guides):
        if array is not None:
            digest.update(json.dumps([list(array.shape), array.dtype.str]).encode())
            for chunk in _chunks(array):
                digest.update(chunk)
    return digest.hexdigest()


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
    rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield memoryview(np.ascontiguousarray(array[start : start + rows])).cast("B")
