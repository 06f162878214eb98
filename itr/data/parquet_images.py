"""Reads images that are stored in Parquet files, as the Hugging Face hub has them.

An image stays in its file. It is found by its row; the row group that holds it is decompressed as a
whole, and the last few are kept, so that memory stays flat.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.records import Slice
from itr.errors import DataError

ROW_GROUPS_KEPT = 8  # over all threads; the hub's have 100 images each
_lock = threading.Lock()


class ParquetImage(Slice):
    """The image in a row of the file ``path``: ``offset`` is the row, ``size`` its bytes or 0."""

    __slots__ = ()


@functools.lru_cache(maxsize=64)
def image_column(path: str) -> str | None:
    """The column that holds encoded images, bare or as ``bytes`` of a struct; None if there is
    none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    fields = [field for field in pq.read_schema(path) if holds_bytes(field.type)]
    return fields[0].name if fields else None


@functools.lru_cache(maxsize=256)
def rows_without_image(path: str, mtime_ns: int) -> frozenset[int]:
    """The rows of ``path`` that hold no image.

    Only row groups that have such rows according to their statistics are read. ``mtime_ns`` is the
    modification time of the file.
    """
    import pyarrow.parquet as pq

    column, empty, first = image_column(path), set[int](), 0
    with pq.ParquetFile(path) as file:
        names = [file.schema.column(n).path for n in range(len(file.schema))]
        leaf = names.index(column if column in names else f"{column}.bytes")
        for group in range(file.metadata.num_row_groups):
            chunk = file.metadata.row_group(group)
            statistics = chunk.column(leaf).statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                images = file.read_row_group(group, [names[leaf]]).column(0).combine_chunks()
                images = images.field("bytes") if names[leaf] != column else images
                empty.update((first + np.flatnonzero(images.is_null())).tolist())
            first += chunk.num_rows
    return frozenset(empty)


def read_image(image: ParquetImage) -> bytes:
    """The encoded image. Raises DataError if the row holds none."""
    import pyarrow as pa

    try:
        with _lock:
            mtime_ns = Path(image.path).stat().st_mtime_ns
            group, first = _group_of(image.path, image.offset, mtime_ns)
            column = _row_group(image.path, mtime_ns, group)
        value = column[image.offset - first].as_py()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{image.path}: row {image.offset} cannot be read ({str(error).splitlines()[0]}); "
            "download the file again"
        ) from error
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise DataError(f"{image.path}: row {image.offset} holds no image; remove the row")
    return bytes(data)


def _group_of(path: str, row: int, mtime_ns: int) -> tuple[int, int]:
    """The row group of ``row``, and its first row."""
    first = 0
    for group, rows in enumerate(_rows_of_groups(path, mtime_ns)):
        if row < first + rows:
            return group, first
        first += rows
    raise DataError(f"{path}: has {first} rows, not {row + 1}; it has changed: start again")


@functools.lru_cache(maxsize=256)
def _rows_of_groups(path: str, mtime_ns: int) -> list[int]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=ROW_GROUPS_KEPT)
def _row_group(path: str, mtime_ns: int, group: int) -> Any:
    """The images of a row group as an Arrow column."""
    import pyarrow.parquet as pq

    column = image_column(path)
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(column)
