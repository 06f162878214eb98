"""Reads text tables: rows of cells between commas, tabs, semicolons or bars, and ``.token`` files.

A ``.token`` file (Flickr8K, Flickr30K) has no header: ``NAME.jpg#0<TAB>caption``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from itr.errors import DataError

Rows = Iterator[tuple[str, dict[str, Any]]]  # (where, column -> value)
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": ",", ".token": "\t"}  # usual ones, by file ending
OTHER_SEPARATORS = ("\t", ";", "|", ",")
LONGEST_HEADER = 100_000  # characters; the csv module reads fields up to 131,072
TOKEN_LINE = re.compile(r"[^\t]+\.\w+#\d+\t")


@dataclass
class Oddities:
    """Lines of a table that are read in an unusual way, numbered from 1."""

    blank: list[int] = field(default_factory=list)  # skipped
    continued: list[int] = field(default_factory=list)  # first lines of rows with line breaks
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> rows
    rows: int = 0  # in all
    unread: list[str] = field(default_factory=list)  # columns that may hold further captions

    def notes(self, path: Path) -> tuple[str, ...]:
        """Log lines about them."""
        notes = []
        if self.blank:
            count = f"{len(self.blank)} blank lines are skipped"
            notes.append(f"{path}: {count} (first: line {self.blank[0]})")
        if self.continued:
            count = f"{len(self.continued)} rows hold line breaks between quotes"
            notes.append(f"{path}: {count} (first: line {self.continued[0]})")
        for reason, rows in self.left_out.items():
            notes.append(f"left out: {len(rows)} of {self.rows} rows, {reason}, e.g. {rows[0]}")
        if self.unread:
            notes.append(
                f"{path}: columns {', '.join(self.unread)} are not used "
                f"('data.columns={{caption: {self.unread[0]}}}')"
            )
        return tuple(notes)


def delimited_rows(path: Path, file: TextIO, oddities: Oddities) -> Rows:
    """Yield (position for messages, row) of ``file``, which was opened with ``newline=""``.

    The header decides about the separator. Quotes enclose cells in tables with commas; in others
    only if they do so everywhere, since a bare quote at the start of a caption would otherwise
    swallow the rows up to the next one.

    Raises DataError that names the line for a row with too many or too few cells.
    """
    first = next((line for line in file if line.strip()), "")
    file.seek(0)
    if TOKEN_LINE.match(first):
        yield from _token_rows(path, file, oddities)
        return
    if len(first) > LONGEST_HEADER:
        raise DataError(
            f"{path}: the first line has {len(first):,} characters; expected column names"
        )
    separator = _choose_separator(SEPARATORS[path.suffix.lower()], first)
    header = [name.strip() for name in _split_line(first, separator)]
    if len(header) < 2:
        raise DataError(
            f"{path}: the first line is {first.strip()[:60]!r}; expected column names such as "
            f"image{separator}caption"
        )
    quoted = separator == "," or _are_cells_quoted(file, separator, len(header))
    file.seek(0)
    cells_of = _quoted_cells if quoted else _plain_cells
    seen_header = False
    for line, cells in cells_of(path, file, separator, oddities):
        if len(cells) < 2 and not "".join(cells).strip():
            oddities.blank.append(line)
        elif not seen_header:
            seen_header = True
        elif len(cells) == len(header):
            yield f"{path}, line {line}", dict(zip(header, cells, strict=True))
        else:
            raise DataError(
                f"{path}, line {line}: {len(cells)} cells, but {len(header)} columns "
                f"({', '.join(header)}); quote texts that contain {separator!r}"
            )


def _choose_separator(usual: str, header: str) -> str:
    """The separator that gives the most columns; the ``usual`` one if several do."""
    candidates = (usual, *OTHER_SEPARATORS)
    return max(candidates, key=lambda separator: len(_split_line(header, separator)))


def _split_line(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


def _are_cells_quoted(lines: Iterable[str], separator: str, columns: int) -> bool:
    """Whether quotes enclose cells. They do not if a line is sound only without them.

    They may enclose line breaks only if the lines alone do not have the right number of cells.
    """
    line_by_line = fits_without = True
    for line in lines:
        if not line.strip():
            continue
        fits_without = fits_without and line.count(separator) == columns - 1
        if '"' in line and line_by_line:
            try:
                cells = next(csv.reader([line], delimiter=separator, strict=True))
                line_by_line = len(cells) == columns
            except csv.Error:
                line_by_line = False
    return line_by_line or not fits_without


def _plain_cells(
    path: Path, file: TextIO, separator: str, oddities: Oddities
) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, start=1):
        yield number, line.rstrip("\r\n").split(separator)


def _quoted_cells(
    path: Path, file: TextIO, separator: str, oddities: Oddities
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=separator, strict=True)
    line = 1
    try:
        for cells in reader:
            if reader.line_num > line:
                oddities.continued.append(line)
                if separator != "," and any(separator in c and "\n" in c for c in cells):
                    raise DataError(
                        f"{path}, line {line}: a quote is closed only in line {reader.line_num}, "
                        "and swallows the cells between; close it, or write no quotes around cells"
                    )
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: {error}; close the quote, and write quotes inside it twice"
        ) from error


def _token_rows(path: Path, file: TextIO, oddities: Oddities) -> Rows:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            oddities.blank.append(number)
            continue
        name, tab, caption = line.partition("\t")
        image, mark, _ = name.rpartition("#")
        if not tab or not mark:
            raise DataError(
                f"{path}, line {number}: is {line.strip()[:60]!r}; expected "
                "NAME.jpg#0, a tab and a caption, as in the lines before"
            )
        yield f"{path}, line {number}", {"image": image, "caption": caption.strip()}
