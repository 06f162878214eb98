"""Chooses the columns of a table that hold images, captions, ids and splits."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.data.layout import SECOND
from itr.data.layouts.tables.delimited import Oddities, Rows
from itr.errors import ConfigError, DataError

CHATS = ("conversations", "messages")  # lists of turns, the answers of which are captions
# Common names of each column; the first one in the table is used. data.columns adds others.
COLUMNS: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "filepath", "image_path", "file_name", "filename", "file", "path"),
        *("image_name", "image_file", "jpg", "png", "webp"),
    ),
    "caption": (
        *("caption", "captions", "text", "title", "comment", "raw", "sentence", "sentences"),
        *("sentences_raw", "txt", *CHATS),
    ),
    "image_id": ("image_id", "imgid", "cocoid", "img_id"),
    "caption_id": ("caption_id", "sentid"),
    "split": ("split",),
}
REQUIRED = ("image", "caption")
FOLDER, FILE = "filepath", "filename"  # in Karpathy's annotations, the folder and the file
PLUS = "+"  # joins the columns of captions, as in caption_0+caption_1
NUMBERED = re.compile(r"(?:captions?|texts?|sentences?|raw|titles?)_?(\d+)", re.IGNORECASE)
# Captions in another language (caption_de), or of another kind, beside the ones that are read.
OTHER = re.compile(r"(?:captions?|texts?|sentences?)_\w+|\w+_(?:captions?|texts?)", re.IGNORECASE)
HEAD = 1000  # rows of a table that decide about its columns


def with_columns(
    path: Path, rows: Rows, names: Mapping[str, str], oddities: Oddities
) -> tuple[Rows, dict[str, str]]:
    """``rows``, and the column of each key of `COLUMNS`; ``names`` are those that the user passed.

    The first `HEAD` rows decide, since JSON may leave out keys. Raises DataError if a column is
    missing; so do the rows where a later one has a column that would have changed the choice.
    """
    head = list(itertools.islice(rows, HEAD))
    known = {key: value for _, row in reversed(head) for key, value in row.items()}
    columns = _choose_columns(path, known, names) if head else {}
    oddities.unread = _unread_columns(known, columns, names[SECOND]) if head else []

    def checked() -> Rows:
        yield from head
        for where, row in rows:
            if not row.keys() <= known.keys():
                later = _choose_columns(path, {**known, **row}, names)
                if new := sorted(later.items() - columns.items()):
                    raise DataError(
                        f"{where}: has '{new[0][1]}', which no row before has; write it in every "
                        "row, or leave it out everywhere"
                    )
                known.update(row)
            yield where, row

    return checked(), columns


def _choose_columns(path: Path, row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Key of `COLUMNS` -> column of ``row``; ``names`` are those that the user passed."""
    if unknown := names.keys() - COLUMNS.keys() - {SECOND}:
        raise ConfigError(f"data.columns.{min(unknown)}: unknown; expected {', '.join(COLUMNS)}")
    columns = {}
    for key, usual_names in COLUMNS.items():
        candidates = (names[key],) if key in names else usual_names
        column = next((name for name in candidates if name in row), None)
        if key == "caption":
            column = column or _several_columns(path, candidates, row)
        if column is not None:
            columns[key] = column
        elif key in REQUIRED or key in names:
            raise DataError(
                f"{path}: no column {' or '.join(candidates)}; its columns: {', '.join(row)}. Pass "
                f"'data.columns={{{key}: {_nearest_column(key, row)}}}'"
            )
    return columns


def _several_columns(path: Path, candidates: tuple[str, ...], row: Mapping[str, Any]) -> str | None:
    """The columns that the user joined, or that number the captions of an image; None: none."""
    joined = candidates[0].split(PLUS)
    if len(candidates) == 1 and len(joined) > 1:
        if missing := [name for name in joined if name not in row]:
            raise DataError(
                f"{path}: no column {' or '.join(missing)}; its columns: {', '.join(row)}. Pass "
                "'data.columns={caption: NAME+NAME}'"
            )
        return candidates[0]
    numbered = {name: match for name in row if (match := NUMBERED.fullmatch(name))}
    return PLUS.join(sorted(numbered, key=lambda name: int(numbered[name][1]))) or None


def _nearest_column(key: str, row: Mapping[str, Any]) -> str:
    """A column that may hold captions in another language; NAME if there is none."""
    return next((name for name in row if key == "caption" and OTHER.fullmatch(name)), "NAME")


def _unread_columns(row: Mapping[str, Any], columns: Mapping[str, str], second: str) -> list[str]:
    """Columns that seem to hold further captions and are not read."""
    read = {second, *columns.values(), *columns["caption"].split(PLUS)}
    ids = ("_id", "_ids", "_hash", "_length", "_len")
    return [
        name
        for name, value in row.items()
        if name not in read
        and (NUMBERED.fullmatch(name) or OTHER.fullmatch(name) or name in COLUMNS["caption"])
        and not name.lower().endswith(ids)
        and isinstance(value, str | list)
    ]
