"""Rows of a table on disk, whatever its kind: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from itr.errors import DataError

Rows = Iterator[tuple[str, dict[str, Any]]]  # (where, column -> value)
SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".jsonl", ".parquet")


def read_rows(path: Path) -> Rows:
    """The rows of ``path`` and, for messages, where each stands; empty lines are passed over.

    Raises DataError that names the line for what cannot be read.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"{path}: unknown kind of table; expected {', '.join(ENDINGS)}")
    if ending == ".parquet":
        yield from _parquet(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _lines(path, file) if ending == ".jsonl" else _cells(path, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _cells(path: Path, file: TextIO) -> Rows:
    separator = SEPARATORS[path.suffix.lower()]
    reader = csv.reader(file, delimiter=separator, strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        if len(head) < 2:
            raise DataError(
                f"{path}: its first line is {separator.join(head)[:60]!r}; expected the names of "
                f"columns, such as image{separator}caption"
            )
        for cells in reader:
            if not cells:
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(head):
                raise DataError(
                    f"{where}: {len(cells)} cells, but {len(head)} columns ({', '.join(head)}); "
                    f"put a text that holds '{separator}' in quotes"
                )
            yield where, dict(zip(head, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _lines(path: Path, file: TextIO) -> Rows:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: no complete JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: is a {type(row).__name__}; expected an object")
        yield where, row


def _parquet(path: Path) -> Rows:
    import pyarrow as pa  # imported late: it takes a while, and few tables need it
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: no complete Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
