"""Reads the rows of a table file: CSV, TSV, JSON lines or Parquet."""

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
    """Yield (position for messages, row) for each row of ``path``; empty lines are skipped.

    Raises DataError that names the line for unreadable contents.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"{path}: unknown table format; expected {', '.join(ENDINGS)}")
    if ending == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from (_json_rows if ending == ".jsonl" else _separated_rows)(path, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _separated_rows(path: Path, file: TextIO) -> Rows:
    separator = SEPARATORS[path.suffix.lower()]
    reader = csv.reader(file, delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(header) < 2:
            raise DataError(
                f"{path}: the first line is {separator.join(header)[:60]!r}; expected column "
                f"names such as image{separator}caption"
            )
        for cells in reader:
            if not cells:
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, but {len(header)} columns "
                    f"({', '.join(header)}); quote texts that contain '{separator}'"
                )
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _json_rows(path: Path, file: TextIO) -> Rows:
    for number, line in enumerate(file, start=1):
        if not line.strip():
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
