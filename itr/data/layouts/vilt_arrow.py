"""Reader of ViLT's and Multi-SEA's ``<name>_caption_karpathy_<split>.arrow``.

A row an image: ``image`` (the encoded picture), ``caption`` (a list), ``image_id`` (its file's
name) and ``split``. Pictures stay in the file: a record says where their bytes lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.config import DataConfig
from itr.data.layout import coco_id, find_files, root_of, split_in
from itr.data.layouts.json_annotations import require_apart
from itr.data.records import SEQUENTIAL_ID, Record, Slice, Split
from itr.errors import DataError

FOLDERS = ("", "arrow")  # below data.root
NAMES = re.compile(r"(?P<name>.+)_caption_karpathy_(?P<split>\w+)\.arrow")
FOLDED = "restval"  # COCO: read with train
MAGIC = b"ARROW1"
OWN = ("imgid", "sentids")  # columns that our converter adds: the ids of image and captions


@dataclass(frozen=True)
class Arrow:
    """The files of a data set, by split."""

    path: Path
    files: dict[str, Path]
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    layout: str = "arrow"
    holds: str = "pixels"

    def splits(self) -> list[str]:
        """Those of which there is a file; ``restval`` is part of ``train``."""
        return [split for split in self.files if split != FOLDED or "train" not in self.files]

    def read(self, split: str) -> Split:
        """One split; no picture is decoded."""
        name = split_in(split, self.splits(), str(self.path))
        paths = [self.files[name]]
        if name == "train" and FOLDED in self.files:
            paths.append(self.files[FOLDED])
        places: list[tuple[str, str, Record]] = []
        for path in paths:
            places.extend(_records(path, len(places), sum(len(r.captions) for *_, r in places)))
        require_apart((where, split, _by_name(record)) for where, split, record in places)
        return Split(
            name,
            self.layout,
            [record for *_, record in places],
            decoder=self.decoder,
            source=" + ".join(map(str, paths)),
            notes=self.notes,
        )


def find(data: DataConfig) -> Arrow | None:
    """The .arrow files of the data set below ``data.root``; None: there are none."""
    root = root_of(data)
    found = find_files([root / folder for folder in FOLDERS], NAMES, data.name)
    if found is None:
        return None
    return Arrow(found.folder, found.by_split, data.decoder, found.notes)


def _by_name(record: Record) -> Record:
    return Record(record.image_id, record.extra["file"], (), ())


def _records(path: Path, number: int, caption: int) -> Iterator[tuple[str, str, Record]]:
    """(where, split, record) of each row; ids count from ``number`` and ``caption`` on."""
    for first, batch, images in _batches(path):
        columns = {
            name: batch.column(name).to_pylist() for name in batch.schema.names if name != "image"
        }
        for row, image in enumerate(images):
            where = f"{path}: row {first + row}"
            file = str(columns["image_id"][row]) if "image_id" in columns else f"row {first + row}"
            texts = _captions(where, columns["caption"][row])
            own_id, own_ids = (columns[key][row] if key in columns else None for key in OWN)
            if own_id is None:
                own_id = coco_id(file)
            ids = tuple(own_ids or range(caption, caption + len(texts)))
            if len(ids) != len(texts):
                raise DataError(f"{where}: {len(ids)} caption ids for {len(texts)} captions")
            extra = {"file": file} | ({SEQUENTIAL_ID: True} if own_id is None else {})
            record = Record(number if own_id is None else own_id, image, texts, ids, extra)
            yield where, str(columns["split"][row]) if "split" in columns else "", record
            number, caption = number + 1, caption + len(texts)


def _captions(where: str, found: Any) -> tuple[str, ...]:
    if not found:
        raise DataError(f"{where}: has no caption; write one, or remove the row")
    texts = tuple(str(text or "").strip() for text in found)
    if "" in texts:
        raise DataError(f"{where}: caption {texts.index('')} is empty; write one, or remove it")
    return texts


def _batches(path: Path) -> Iterator[tuple[int, Any, list[Slice]]]:
    """(first row, batch, where its pictures lie) of each record batch."""
    import pyarrow as pa  # imported late: it takes a while, and few layouts need it

    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise DataError(
                f"{path}: no Arrow IPC file ({path.stat().st_size} bytes, begins with {magic!r}); "
                "expected what pyarrow.RecordBatchFileWriter writes"
            )
        source = pa.memory_map(str(path))
        start, size = source.read_buffer().address, source.size()
        source.seek(0)
        reader = pa.ipc.open_file(source)
        _require_columns(path, reader.schema)
        first = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            yield first, batch, _slices(path, batch.column("image"), first, start, size)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: no complete Arrow file ({str(error).splitlines()[0]}; "
            f"{path.stat().st_size} bytes); copy or make it again"
        ) from error
    if not first:
        raise DataError(f"{path}: holds no row")


def _require_columns(path: Path, schema: Any) -> None:
    import pyarrow as pa

    wanted = {
        "image": (lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t), "binary"),
        "caption": (
            lambda t: pa.types.is_list(t) and pa.types.is_string(t.value_type),
            "list<string>",
        ),
    }
    for name, (fits, expected) in wanted.items():
        if name not in schema.names:
            raise DataError(
                f"{path}: has no column '{name}'; its columns: {', '.join(schema.names)}. Expected "
                "image, caption, image_id, split"
            )
        if not fits(schema.field(name).type):
            raise DataError(
                f"{path}: column '{name}' is {schema.field(name).type}; expected {expected}"
            )


def _slices(path: Path, column: Any, first: int, start: int, size: int) -> list[Slice]:
    """Where the pictures of ``column`` lie in the file that is mapped at ``start``."""
    import pyarrow as pa

    _, offsets, values = column.buffers()
    kind = np.int32 if pa.types.is_binary(column.type) else np.int64
    ends = np.frombuffer(offsets, kind)[column.offset : column.offset + len(column) + 1]
    begin = values.address - start
    if not 0 <= begin <= size - len(values):
        raise DataError(f"{path}: is compressed; write it again without compression")
    lengths = np.diff(ends)
    if column.null_count or not lengths.all():
        empty = np.flatnonzero(lengths == 0)
        raise DataError(f"{path}: row {first + int(empty[0])}: the picture is empty; remove it")
    places = (begin + ends[:-1].astype(np.int64)).tolist()
    return [Slice(str(path), *place) for place in zip(places, lengths.tolist(), strict=True)]
