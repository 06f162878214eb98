"""Reads the rows of a table file: delimited text, JSON lines or Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from itr.data.layouts.delimited import Oddities, Rows, delimited_rows
from itr.errors import DataError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")  # of tables that are read and written
READABLE = (*ENDINGS, ".txt", ".token")  # of tables that are read


def read_rows(path: Path, oddities: Oddities | None = None) -> Rows:
    """Yield (position for messages, row) for each row of ``path``.

    Blank lines are skipped and recorded in ``oddities``. Raises DataError that names the line for
    unreadable contents.
    """
    oddities = Oddities() if oddities is None else oddities
    ending = path.suffix.lower()
    if ending not in READABLE:
        raise DataError(f"{path}: unknown table format; expected {', '.join(READABLE)}")
    if ending == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from (_json_rows if ending == ".jsonl" else delimited_rows)(path, file, oddities)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _json_rows(path: Path, file: TextIO, oddities: Oddities) -> Rows:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            oddities.blank.append(number)
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: is a {type(row).__name__}; expected a JSON object")
        yield where, row


def _parquet_rows(path: Path) -> Rows:
    import pyarrow as pa  # imported here because it is slow and few tables need it
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
            f"{path}: not a valid Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
