"""Writes splits as Karpathy annotations, tables or Arrow files, for ``itr data convert``.

Image files are not copied: annotations refer to them relative to the annotation file. Images inside
other files (tars, Arrow) are extracted unchanged.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import track

from itr.data.ids import NAME
from itr.data.images.decode import read_bytes
from itr.data.layout import coco_id
from itr.data.layouts.tables.delimited import SEPARATORS
from itr.data.layouts.tables.tabular import ENDINGS
from itr.data.records import OTHER_CAPTION, Record, Slice, Split
from itr.errors import DataError
from itr.files import atomic_write
from itr.terminal import PlainConsole

BATCH_ROWS = 500  # rows of an Arrow file held in memory
PUBLISHED = ("f30k", "coco")  # datasets with a config of their own
IMAGES = "images"  # folder of extracted images


@dataclass(frozen=True)
class WriteOptions:
    """Options of the writers."""

    name: str  # of the dataset
    second_key: str = "synthetic_caption"
    shard_size: int = 1000  # samples per tar
    captions: int | None = None  # per image, for precomp; None: as many as every image has
    regions: Path | None = None  # folder of region arrays, for precomp
    images: str = IMAGES  # name of the folder of extracted images, beside the annotations


def iterate(split: Split) -> Iterator[tuple[Record, str | None]]:
    """The records of ``split`` with their second texts (None: no text), with a progress bar."""
    second = None if split.second == OTHER_CAPTION else split.second
    hide = not PlainConsole().is_terminal
    for number in track(range(split.n_images), f"writing {split.name}", disable=hide):
        yield split.records[number], None if second is None else second[number]


def image_names(splits: dict[str, Split]) -> dict[str, list[str]]:
    """The name of each image, by split: its path below the common folder of all images.

    Images inside other files are prefixed with the split, or with the split and the file, if their
    names are not unique otherwise. Raises DataError if two images of one file have the same name.
    """
    files = {
        name: [str(r.extra.get("file") or r.image) for r in split.records]
        for name, split in splits.items()
    }
    if any(isinstance(r.image, Slice) for split in splits.values() for r in split.records):
        names = {name: list(map(_relative, paths)) for name, paths in files.items()}
        return _make_unique(splits, names)
    absolute = [file for paths in files.values() for file in paths if os.path.isabs(file)]
    base = os.path.commonpath([os.path.dirname(file) for file in absolute]) if absolute else ""
    return {
        name: [
            os.path.relpath(file, base) if os.path.isabs(file) else _relative(file)
            for file in paths
        ]
        for name, paths in files.items()
    }


def _make_unique(splits: dict[str, Split], names: dict[str, list[str]]) -> dict[str, list[str]]:
    """``names`` of images inside other files, with folders that make them unique."""
    containers = {
        part: [Path(record.image.path) for record in split.records]  # type: ignore[union-attr]
        for part, split in splits.items()
    }
    by_split = {part: [f"{part}/{name}" for name in values] for part, values in names.items()}
    by_container = {
        part: [
            f"{part}/{path.stem}/{name}"
            for path, name in zip(containers[part], values, strict=True)
        ]
        for part, values in names.items()
    }
    for candidate in (names, by_split, by_container):
        duplicate = first_duplicate(name for values in candidate.values() for name in values)
        if duplicate is None:
            return candidate
    part, stem, name = str(duplicate).split("/", 2)
    raise DataError(
        f"{next(path for path in containers[part] if path.stem == stem)}: two images of {part} "
        f"are named {name}, so one would overwrite the other; give them different names"
    )


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first of ``names`` that repeats an earlier one, ignoring case; None if there is none."""
    seen: set[str] = set()
    for name in names:
        if (folded := name.casefold()) in seen:
            return name
        seen.add(folded)
    return None


def _relative(file: str) -> str:
    """``file`` as a relative path that cannot leave the folder it is written to."""
    parts = [part for part in PurePosixPath(file).parts if part not in ("..", "/")]
    return "/".join(parts)


def store_image(record: Record, name: str, folder: Path, images: str = IMAGES) -> str:
    """The path of the image relative to ``folder``; extracted to ``images`` in it if it is not a
    file."""
    if not isinstance(record.image, Slice):
        return os.path.relpath(str(record.image), folder)
    path = folder / images / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(read_bytes(record.image))
    except FileExistsError as error:
        raise DataError(
            f"{path}: already exists and would be overwritten; pass a TARGET in an empty folder"
        ) from error
    return f"{images}/{name}"


def training_hint(location: str, name: str) -> str:
    """A line with the options of train.py that read the written dataset.

    ``location`` are the options that name its files. Unpublished datasets use ``data=table``, which
    reads any layout and has no published protocols.
    """
    dataset = f"data={name}" if name in PUBLISHED else f"data=table data.name={name}"
    return f"train with: {dataset} {location}"


def write_karpathy(target: Path, splits: dict[str, Split], options: WriteOptions) -> list[str]:
    """Write ``dataset_<name>.json`` at ``target``, or in the folder ``target``."""
    if target.suffix != ".json":
        target = target / f"dataset_{options.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    names, images = image_names(splits), []
    for part, split in splits.items():
        for (record, _), name in zip(iterate(split), names[part], strict=True):
            path = store_image(record, name, target.parent, options.images)
            images.append(_karpathy_entry(record, path, part))
    content = {"images": images, "dataset": options.name}
    with atomic_write(target) as file:
        file.write(json.dumps(content, ensure_ascii=False).encode())
    return [
        training_hint(f"data.root={target.parent} data.layout=karpathy", options.name),
        *_write_second_texts(splits, target.parent),
    ]


def _karpathy_entry(record: Record, path: str, split: str) -> dict[str, Any]:
    folder, file = os.path.split(path)
    ids: dict[str, Any] = {"imgid": record.extra.get(NAME, record.image_id)}
    if coco_id(file) == record.image_id:  # otherwise the reader would use another id
        ids["cocoid"] = record.image_id
    sentences = [
        {"raw": text, "tokens": text.lower().split(), "imgid": record.image_id, "sentid": number}
        for text, number in zip(record.captions, record.caption_ids, strict=True)
    ]
    return {
        "filepath": folder,
        "filename": file,
        **ids,
        "split": split,
        "sentids": list(record.caption_ids),
        "sentences": sentences,
    }


def write_table(target: Path, splits: dict[str, Split], options: WriteOptions) -> list[str]:
    """Write a table with a column ``split`` at ``target`` (in a folder: pairs.csv)."""
    if target.suffix not in ENDINGS:
        target = target / "pairs.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    names, rows = image_names(splits), []
    for part, split in splits.items():
        for (record, second), name in zip(iterate(split), names[part], strict=True):
            image = store_image(record, name, target.parent, options.images)
            for text, number in zip(record.captions, record.caption_ids, strict=True):
                row: dict[str, Any] = {"image": image, "caption": text, "split": part}
                row["image_id"] = record.extra.get(NAME, record.image_id)
                row["caption_id"] = number
                rows.append(row if second is None else {**row, options.second_key: second})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(target) as file:
        file.write(_encode_table(target.suffix, columns, rows))
    return [training_hint(f"data.train={target}", options.name)]


def _encode_table(extension: str, columns: list[str], rows: list[dict[str, Any]]) -> bytes:
    if extension == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if extension == ".parquet":
        import pyarrow as pa  # imported here because it is slow
        import pyarrow.parquet as pq

        file = pa.BufferOutputStream()
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in columns}), file)
        return file.getvalue().to_pybytes()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, delimiter=SEPARATORS[extension], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_arrow(target: Path, splits: dict[str, Split], options: WriteOptions) -> list[str]:
    """Write ``<name>_caption_karpathy_<split>.arrow``, as ViLT's scripts do, to a folder.

    The additional columns ``imgid`` and ``sentids`` preserve the ids.
    """
    import pyarrow as pa  # imported here because it is slow

    target.mkdir(parents=True, exist_ok=True)
    names = image_names(splits)
    basenames = (os.path.basename(name) for values in names.values() for name in values)
    unique = first_duplicate(basenames) is None
    schema = pa.schema(
        {
            "image": pa.binary(),
            "caption": pa.list_(pa.string()),
            "image_id": pa.string(),
            "split": pa.string(),
            "imgid": pa.int64(),
            "sentids": pa.list_(pa.int64()),
        }
    )
    for part, split in splits.items():
        path = target / f"{options.name}_caption_karpathy_{part}.arrow"
        rows: list[dict[str, Any]] = []
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for (record, _), name in zip(iterate(split), names[part], strict=True):
                row = {"image": read_bytes(record.image), "caption": list(record.captions)}
                row |= {"image_id": os.path.basename(name) if unique else name, "split": part}
                rows.append(row | {"imgid": record.image_id, "sentids": list(record.caption_ids)})
                if len(rows) == BATCH_ROWS:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                    rows = []
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return [
        training_hint(f"data.root={target} data.layout=arrow", options.name),
        *_write_second_texts(splits, target),
    ]


def _write_second_texts(splits: dict[str, Split], folder: Path) -> list[str]:
    """Write ``second.json`` for layouts that cannot hold second texts; lines about it."""
    texts = {
        str(record.image_id): second
        for split in splits.values()
        if split.second_texts()
        for record, second in zip(split.records, split.second_texts(), strict=True)
    }
    if not texts:
        return []
    with atomic_write(folder / "second.json") as file:
        file.write(json.dumps(texts, ensure_ascii=False).encode())
    return [f"second texts: data.second_text={folder / 'second.json'}"]
