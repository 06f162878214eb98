"""Reader for the Arrow files of ViLT and Multi-SEA: ``<name>_caption_karpathy_<split>.arrow``.

One row per image: ``image`` (encoded bytes), ``caption`` (a list), ``image_id`` (the file name) and
``split``. Image bytes stay in the file; a record holds their byte range.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.config import DataConfig
from itr.data.layout import LayoutSpec, coco_id, data_root, find_dataset_files
from itr.data.layouts.json_annotations import require_unique_images
from itr.data.records import SEQUENTIAL_ID, Record, Slice, Split
from itr.data.splits import resolve_split
from itr.errors import DataError

FOLDERS = ("", "arrow")  # below data.root
FILE_NAME = re.compile(r"(?P<name>.+)_caption_karpathy_(?P<split>\w+)\.arrow")
RESTVAL = "restval"  # COCO: validation images that are used for training
MAGIC = b"ARROW1"
ID_COLUMNS = ("imgid", "sentids")  # added by `itr data convert`: image id, caption ids
LAYOUT = LayoutSpec("arrow", "pixels", 4, "{name}_caption_karpathy_train.arrow")


@dataclass(frozen=True)
class ArrowLayout:
    """The files of a dataset, by split."""

    path: Path
    files: dict[str, Path]
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    name: str = "arrow"
    kind: str = "pixels"

    def splits(self) -> list[str]:
        """The splits that have a file; ``restval`` is merged into ``train``."""
        return [split for split in self.files if split != RESTVAL or "train" not in self.files]

    def read(self, split: str) -> Split:
        """Read one split. Decodes no image."""
        key = resolve_split(split, self.splits(), str(self.path))
        paths = [self.files[key]]
        if key == "train" and RESTVAL in self.files:
            paths.append(self.files[RESTVAL])
        entries: list[tuple[str, str, Record]] = []
        for path in paths:
            n_captions = sum(len(record.captions) for *_, record in entries)
            entries.extend(_read_rows(path, len(entries), n_captions))
        require_unique_images((where, split, _named(record)) for where, split, record in entries)
        return Split(
            key,
            self.name,
            [record for *_, record in entries],
            decoder=self.decoder,
            source=" + ".join(map(str, paths)),
            notes=self.notes,
        )


def find(data: DataConfig) -> ArrowLayout | None:
    """The Arrow files of the dataset below ``data.root``, or None."""
    root = data_root(data)
    files = find_dataset_files([root / folder for folder in FOLDERS], FILE_NAME, data.name)
    if files is None:
        return None
    return ArrowLayout(files.folder, files.by_split, data.decoder, files.notes)


def _named(record: Record) -> Record:
    """``record`` with its file name as the image, by which duplicates are recognized."""
    return Record(record.image_id, record.extra["file"], (), ())


def _read_rows(path: Path, n_images: int, n_captions: int) -> Iterator[tuple[str, str, Record]]:
    """(position, split, record) of each row; missing ids are counted from the arguments."""
    for first, batch, images in _batches(path):
        columns = {
            name: batch.column(name).to_pylist() for name in batch.schema.names if name != "image"
        }
        for row, image in enumerate(images):
            where = f"{path}: row {first + row}"
            file = str(columns["image_id"][row]) if "image_id" in columns else f"row {first + row}"
            texts = _captions(where, columns["caption"][row])
            image_id, ids = (columns[key][row] if key in columns else None for key in ID_COLUMNS)
            if image_id is None:
                image_id = coco_id(file)
            caption_ids = tuple(ids or range(n_captions, n_captions + len(texts)))
            if len(caption_ids) != len(texts):
                raise DataError(
                    f"{where}: {len(caption_ids)} caption ids for {len(texts)} captions; expected "
                    "one id per caption"
                )
            extra = {"file": file} | ({SEQUENTIAL_ID: True} if image_id is None else {})
            record = Record(
                n_images if image_id is None else image_id, image, texts, caption_ids, extra
            )
            yield where, str(columns["split"][row]) if "split" in columns else "", record
            n_images, n_captions = n_images + 1, n_captions + len(texts)


def _captions(where: str, values: Any) -> tuple[str, ...]:
    texts = tuple(str(text or "").strip() for text in values or ())
    if "" in texts:
        raise DataError(f"{where}: caption {texts.index('')} is empty; write one, or remove it")
    return texts


def _batches(path: Path) -> Iterator[tuple[int, Any, list[Slice]]]:
    """(first row, batch, byte ranges of its images) for each record batch."""
    import pyarrow as pa  # imported here because it is slow and few layouts need it

    _require_magic(path)
    try:
        source = pa.memory_map(str(path))
        start, size = source.read_buffer().address, source.size()
        source.seek(0)
        reader = pa.ipc.open_file(source)
        _require_columns(path, reader.schema)
        first = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            yield first, batch, _byte_ranges(path, batch.column("image"), first, start, size)
            first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a valid Arrow file ({str(error).splitlines()[0]}; "
            f"{path.stat().st_size} bytes); copy it or write it again"
        ) from error
    if not first:
        raise DataError(f"{path}: holds no row; expected one row per image")


def _require_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if magic != MAGIC:
        raise DataError(
            f"{path}: not an Arrow IPC file ({path.stat().st_size} bytes, begins with {magic!r}); "
            "expected the output of pyarrow.RecordBatchFileWriter"
        )


def _require_columns(path: Path, schema: Any) -> None:
    import pyarrow as pa

    expected = {
        "image": (lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t), "binary"),
        "caption": (
            lambda t: pa.types.is_list(t) and pa.types.is_string(t.value_type),
            "list<string>",
        ),
    }
    for name, (has_type, type_name) in expected.items():
        if name not in schema.names:
            raise DataError(
                f"{path}: no column '{name}'; its columns: {', '.join(schema.names)}. Expected "
                "image, caption, image_id, split"
            )
        if not has_type(schema.field(name).type):
            raise DataError(
                f"{path}: column '{name}' is {schema.field(name).type}; expected {type_name}"
            )


def _byte_ranges(path: Path, column: Any, first: int, start: int, size: int) -> list[Slice]:
    """Byte ranges of the images in ``column``.

    Args:
        column: a binary Arrow array, part of a memory map.
        first: row number of its first image, for messages.
        start, size: address and length in bytes of the memory map.
    """
    import pyarrow as pa

    _, offsets, values = column.buffers()
    dtype = np.int32 if pa.types.is_binary(column.type) else np.int64
    ends = np.frombuffer(offsets, dtype)[column.offset : column.offset + len(column) + 1]
    begin = values.address - start
    if not 0 <= begin <= size - len(values):
        raise DataError(f"{path}: is compressed; write it again without compression")
    lengths = np.diff(ends)
    if column.null_count or not lengths.all():
        empty = np.flatnonzero(lengths == 0)
        raise DataError(f"{path}: row {first + int(empty[0])}: the image is empty; remove the row")
    begins = (begin + ends[:-1].astype(np.int64)).tolist()
    return [Slice(str(path), *span) for span in zip(begins, lengths.tolist(), strict=True)]
