"""The images and captions in the rows of a table: columns, ids and texts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.ids import Ids, id_key, is_missing, number_ids, require_id
from itr.data.layout import coco_id
from itr.data.layouts.delimited import Oddities
from itr.data.layouts.json_annotations import describe_value
from itr.data.layouts.tabular import StoredImage, read_rows
from itr.data.parquet_images import ParquetImage, read_image
from itr.data.records import Record
from itr.data.splits import split_key
from itr.errors import ConfigError, DataError

CHATS = ("conversations", "messages")  # lists of turns, the answers of which are captions
ANSWERS = ("gpt", "assistant")
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
PLUS = "+"  # joins the columns of captions, as in caption_0+caption_1
NUMBERED = re.compile(r"(?:captions?|texts?|sentences?|raw|titles?)_?(\d+)", re.IGNORECASE)
# Captions in another language (caption_de), or of another kind, beside the ones that are read.
OTHER = re.compile(r"(?:captions?|texts?|sentences?)_\w+|\w+_(?:captions?|texts?)", re.IGNORECASE)
FAILED = "failed_to_"  # start of img2dataset's column status
NO_IMAGE = "rows without an image"  # a reason to leave out rows
COMPARED = 16  # images of equal names in a Parquet file that are compared
NO_ID = ("", None)  # one object for all rows without an id
SECOND = "second"  # key of Record.extra: the second text


def read_entries(
    path: Path, split: str, names: Mapping[str, str], oddities: Oddities
) -> tuple[list[tuple[str, str, Record]], tuple[str, ...]]:
    """(position, split, record) of each image of the table, and notes about its ids.

    Args:
        path: the table.
        split: of rows that name none.
        names: the columns that the user passed, and the one of the second text.
        oddities: where blank lines are recorded.

    Raises DataError that names the line for a row that cannot be used.
    """
    caption_ids: list[tuple[str, Any]] = []
    try:
        images = _images_of_rows(path, split, names, oddities, caption_ids, _ImageNames())
    except _NamesRepeatError as error:
        caption_ids.clear()
        vars(oddities).update(vars(Oddities()))
        by_row = _ImageNames(by_row=True)
        images = _images_of_rows(path, split, names, oddities, caption_ids, by_row)
        notes = (f"{path}: {error}; each row is read as an image of its own",)
    else:
        notes = ()
    places = [image["where"] for image in images.values()]
    given = [
        coco_id(file) if is_missing(image["id"]) else image["id"]
        for (_, file), image in images.items()
    ]
    ids = number_ids(given, places, "image")
    texts = number_ids([n for _, n in caption_ids], [where for where, _ in caption_ids], "caption")
    entries = [
        (image["where"], row_split, _make_record(index, file, image, ids, texts.numbers))
        for index, ((row_split, file), image) in enumerate(images.items())
    ]
    return entries, (*notes, *ids.notes, *texts.notes)


class _NamesRepeatError(Exception):
    """Different images in a Parquet file have the same name."""


@dataclass
class _ImageNames:
    """Names of the images in Parquet files. Rows of the same name are one image."""

    by_row: bool = False  # every row is an image of its own
    compared: int = 0

    def name(self, image: StoredImage, row: Mapping[str, Any]) -> str:
        """The name that the image or img2dataset's column ``key`` gives, or else the row."""
        key = row.get("key")
        named = image.name or (f"{key}.jpg" if isinstance(key, str) and key else None)
        place = f"{Path(image.path).name}, row {image.row}"
        return named if named and not self.by_row else f"{named}, {place}" if named else place

    def require_same(self, one: StoredImage, other: StoredImage) -> None:
        """Compare the first few images of equal names. Raises _NamesRepeatError if they differ."""
        if self.compared < COMPARED:
            self.compared += 1
            stored = (ParquetImage(image.path, image.row, 0) for image in (one, other))
            if len({read_image(image) for image in stored}) > 1:
                raise _NamesRepeatError(f"different images have the name {one.name}")


def _images_of_rows(
    path: Path,
    split: str,
    names: Mapping[str, str],
    oddities: Oddities,
    caption_ids: list[tuple[str, Any]],
    names_of: _ImageNames,
) -> dict[tuple[str, str], dict[str, Any]]:
    """(split, image) -> its first row, texts, their indices in the table, id and second text.

    (position, id) of every caption is appended to ``caption_ids``.
    """
    images: dict[tuple[str, str], dict[str, Any]] = {}
    columns: dict[str, str] | None = None
    splits = _SplitColumn(split)
    for where, row in read_rows(path, oddities):
        oddities.rows += 1
        if columns is None:
            columns = _choose_columns(path, row, names)
            oddities.unread = _unread_columns(row, columns, names[SECOND])
        if reason := _reason_to_leave_out(row, columns):
            oddities.left_out.setdefault(reason, []).append(where)
            continue
        row_split = splits.of(where, row.get(columns["split"])) if "split" in columns else split
        stored = row.get(columns["image"])
        if isinstance(stored, StoredImage):
            file = names_of.name(stored, row)
        else:
            file, stored = _image_path(where, row, columns["image"]), None
        texts = [
            text
            for column in columns["caption"].split(PLUS)
            for text in _captions(where, row, column, optional=PLUS in columns["caption"])
        ]
        if not texts:
            raise DataError(f"{where}: no caption in {columns['caption']}; expected one at least")
        if stored is not None and (row_split, file) in images:
            names_of.require_same(images[row_split, file]["stored"], stored)
        image = images.setdefault(
            (row_split, file), {"where": where, "texts": [], "indices": [], "stored": stored}
        )
        image["texts"].extend(texts)
        image["indices"].extend(range(len(caption_ids), len(caption_ids) + len(texts)))
        caption_id = _id(where, row, columns.get("caption_id")) if len(texts) == 1 else None
        caption_ids.extend([NO_ID if caption_id is None else (where, caption_id)] * len(texts))
        image_id = _id(where, row, columns.get("image_id"))
        if id_key(image.setdefault("id", image_id)) != id_key(image_id):
            raise DataError(
                f"{where}: image id {image_id} of {file} differs from {image['id']} in an earlier "
                "row; use one id per image"
            )
        image.setdefault(SECOND, str(row.get(names[SECOND]) or "").strip() or None)
    return images


def _reason_to_leave_out(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Why a row holds nothing to train on; empty if it does."""
    image = row.get(columns["image"])
    if str(row.get("status")).startswith(FAILED):
        return "failed downloads"
    if columns["caption"] in CHATS and image is None:
        return "chats without an image"
    if isinstance(image, StoredImage) and not image.present:
        return NO_IMAGE
    return ""


@dataclass
class _SplitColumn:
    """The column ``split``, which is filled in everywhere or nowhere."""

    default: str  # of tables where it is filled in nowhere
    first_named: str = ""  # positions
    first_blank: str = ""

    def of(self, where: str, value: Any) -> str:
        """The split of a row. Raises DataError if only some of the rows so far name theirs."""
        blank = is_missing(value) or not str(value).strip()
        if blank:
            self.first_blank = self.first_blank or where
        else:
            self.first_named = self.first_named or where
        if self.first_named and self.first_blank:
            raise DataError(
                f"{self.first_blank}: no split, unlike {self.first_named}; write train, val or "
                "test in every row, or leave the column out"
            )
        return self.default if blank else split_key(str(value))


def _make_record(
    index: int, file: str, image: Mapping[str, Any], ids: Ids, caption_ids: list[int]
) -> Record:
    extra = ids.extra(index) | ({} if image[SECOND] is None else {SECOND: image[SECOND]})
    numbers = tuple(caption_ids[n] for n in image["indices"])
    place: str | ParquetImage = file
    if image["stored"] is not None:  # numbered files of a split may repeat a name
        place, extra = (
            ParquetImage(image["stored"].path, image["stored"].row, 0),
            {
                **extra,
                "file": file,
            },
        )
    return Record(ids.numbers[index], place, tuple(image["texts"]), numbers, extra)


def _id(where: str, row: Mapping[str, Any], column: str | None) -> Any:
    """The id in ``column``; None if there is none."""
    value = None if column is None else require_id(where, column, row.get(column))
    return None if is_missing(value) else value


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


def _image_path(where: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: '{column}' is {describe_value(value)}; expected an image path")
    path = value.strip()
    return os.path.normpath(path) if path.startswith("./") or "/./" in path else path


def _captions(where: str, row: Mapping[str, Any], column: str, optional: bool = False) -> list[str]:
    """The captions in a column. Raises DataError if there is none, unless it is ``optional``."""
    value = row.get(column)
    texts: list[str] = []
    if optional and (is_missing(value) or value == [] or not str(value).strip()):
        return texts
    if column in CHATS and isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, dict)]
        said = [t for t in turns if t.get("from", t.get("role")) in ANSWERS]
        value = [turn.get("value", turn.get("content")) for turn in said]
    for text in value if isinstance(value, list) and value else [value]:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: '{column}' is {describe_value(text)}; expected a caption")
        texts.append(text.strip())
    return texts
