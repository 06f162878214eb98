"""The images and captions in the rows of a table: columns, ids and texts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itr.data.ids import Ids, id_key, is_missing, number_ids, require_id
from itr.data.layout import SECOND, coco_id
from itr.data.layouts.json_annotations import describe_value
from itr.data.layouts.tables.delimited import Oddities
from itr.data.layouts.tables.table_columns import CHATS, FILE, FOLDER, PLUS, with_columns
from itr.data.layouts.tables.tabular import StoredImage, read_rows
from itr.data.parquet_images import ParquetImage, read_image
from itr.data.records import Record
from itr.data.splits import split_key
from itr.errors import DataError

ANSWERS = ("gpt", "assistant")
FAILED = "failed_to_"  # start of img2dataset's column status
NO_IMAGE = "rows without an image"  # a reason to leave out rows
COMPARED = 16  # images of equal names in a Parquet file that are compared
NO_ID = ("", None)  # one object for all rows without an id


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
    notes: tuple[str, ...] = ()
    try:
        images = _images_of_rows(path, split, names, oddities, caption_ids, _ImageNames())
    except _NamesRepeatError as error:
        caption_ids.clear()
        vars(oddities).update(vars(Oddities()))
        by_row = _ImageNames(by_row=True)
        images = _images_of_rows(path, split, names, oddities, caption_ids, by_row)
        notes = (f"{path}: {error}; each row is read as an image of its own",)
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
    rows, columns = with_columns(path, read_rows(path, oddities), names, oddities)
    splits = _SplitColumn(split)
    for where, row in rows:
        oddities.rows += 1
        if reason := _reason_to_leave_out(row, columns):
            oddities.left_out.setdefault(reason, []).append(where)
            continue
        row_split = splits.of(where, row.get(columns["split"])) if "split" in columns else split
        stored = row.get(columns["image"])
        if isinstance(stored, StoredImage):
            file = names_of.name(stored, row)
        else:
            file, stored = _image_path(where, row, columns["image"]), None
            if columns["image"] == FOLDER and not Path(file).suffix and FILE in row:
                file = os.path.join(file, _image_path(where, row, FILE))
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
