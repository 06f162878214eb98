"""Reads images that are stored in Parquet files, as the Hugging Face hub has them.

An image stays in its file. It is found by its row; the row group that holds it is decompressed as a
whole, and the last few are kept, so that memory stays flat.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

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


def read_image(image: ParquetImage) -> bytes:
    """The encoded image. Raises DataError if the row holds none."""
    import pyarrow as pa

    try:
        with _lock:
            first, column = _row_group(image.path, *_group_of(image.path, image.offset))
        value = column[image.offset - first].as_py()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{image.path}: row {image.offset} cannot be read ({str(error).splitlines()[0]}); "
            "download the file again"
        ) from error
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise DataError(f"{image.path}: row {image.offset} holds no image; remove the row")
    return bytes(data)


def _group_of(path: str, row: int) -> tuple[int, int]:
    """The row group of ``row``, and its first row."""
    first = 0
    for group, rows in enumerate(_rows_of_groups(path, Path(path).stat().st_mtime_ns)):
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
def _row_group(path: str, group: int, first: int) -> tuple[int, Any]:
    """The first row of a row group, and its images as an Arrow column."""
    import pyarrow.parquet as pq

    column = image_column(path)
    with pq.ParquetFile(path) as file:
        return first, file.read_row_group(group, columns=[column]).column(column)
