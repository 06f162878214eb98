"""Reads the rows of a table file: delimited text, JSON lines or Parquet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from itr.data.layouts.json_annotations import describe_value, load_json
from itr.data.layouts.tables.delimited import Oddities, Rows, delimited_rows
from itr.data.parquet_images import image_column, rows_without_image
from itr.errors import DataError, first_of
from itr.files import parse_json

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")  # of tables that are read and written
NUMBERED = re.compile(r"\d{5}\.parquet")  # of a folder that img2dataset wrote
PART = re.compile(r"(?P<name>.+)-00000-of-(?P<count>\d{5})\.parquet")  # the first of several files
READABLE = (*ENDINGS, ".txt", ".token", ".json")  # of tables that are read


def read_rows(path: Path, oddities: Oddities | None = None) -> Rows:
    """Yield (position for messages, row) for each row of ``path``.

    Blank lines are skipped and recorded in ``oddities``. Raises DataError that names the line for
    unreadable contents.
    """
    oddities = Oddities() if oddities is None else oddities
    ending = path.suffix.lower()
    if ending not in READABLE and not path.is_dir():
        raise DataError(f"{path}: unknown table format; expected {', '.join(READABLE)}")
    if ending == ".json":
        yield from _json_list_rows(path)
        return
    if ending == ".parquet" or path.is_dir():
        for part in parts_of(path):
            yield from _parquet_rows(part)
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
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: is a {type(row).__name__}; expected a JSON object")
        yield where, row


def parts_of(path: Path) -> list[Path]:
    """All files of a table that the hub has split, by its first one, or of a folder of
    img2dataset's (``00000.parquet``, ...); otherwise ``path`` alone.

    Raises DataError that names the files that are missing.
    """
    if path.is_dir():
        return sorted(part for part in path.iterdir() if NUMBERED.fullmatch(part.name))
    match = PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    parts = [
        path.with_name(f"{match['name']}-{n:05d}-of-{count:05d}{path.suffix}") for n in range(count)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise DataError(
            f"{path}: {len(missing)} of its {count} files are missing: {first_of(missing)}; "
            "download them, too"
        )
    return parts


class StoredImage(NamedTuple):
    """An image inside a Parquet file: its row, and its file name if the file gives one."""

    path: str
    row: int
    name: str | None
    present: bool = True  # False: the row holds no image


def _image_names(file: Any, column: str | None) -> list[str | None]:
    """``path`` of the images in ``column``, read without the images; None where there is none."""
    rows = file.metadata.num_rows
    leaf = f"{column}.path"
    if column is None or leaf not in [file.schema.column(n).path for n in range(len(file.schema))]:
        return [None] * rows
    return [value and value.get("path") for value in file.read([leaf]).column(column).to_pylist()]


def _json_list_rows(path: Path) -> Rows:
    content = load_json(path)
    if not isinstance(content, list) or not content:
        raise DataError(
            f"{path}: holds {describe_value(content)}; expected a list of objects with 'image' and "
            "'caption'"
        )
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            raise DataError(f"{path}: [{number}]: is {describe_value(row)}; expected an object")
        yield f"{path}: [{number}]", row


def _parquet_rows(path: Path) -> Rows:
    import pyarrow as pa  # imported here because it is slow and few tables need it
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            images = image_column(str(path))  # left in the file
            columns = [name for name in file.schema_arrow.names if name != images]
            names = _image_names(file, images)
            empty = rows_without_image(str(path), path.stat().st_mtime_ns) if images else ()
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    if images is not None:
                        present = number not in empty
                        row[images] = StoredImage(str(path), number, names[number], present)
                    yield f"{path}, row {number}", row
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a valid Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
