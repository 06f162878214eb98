"""Splits written in the layouts that our readers, and others', read. Used by `convert`.

Pictures that are files stay where they are, and annotations name them relative to themselves; what
lies inside another file is written out, byte by byte.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import track

from itr.data.images.decode import read_bytes
from itr.data.layout import coco_id
from itr.data.layouts.shards.tar import picture_endings
from itr.data.layouts.tabular import SEPARATORS
from itr.data.records import OTHER_CAPTION, Record, Slice, Split
from itr.errors import DataError
from itr.files import atomic_write

ROWS = 500  # of an arrow file that are in memory at a time
IMAGES = "images"  # folder of pictures that are written out


@dataclass(frozen=True)
class Options:
    """What a writer is told."""

    name: str  # of the data set
    second_key: str = "synthetic_caption"
    shard_size: int = 1000
    captions: int | None = None
    regions: Path | None = None


def each(split: Split, what: str) -> Iterator[tuple[Record, str | None]]:
    """The records of ``split`` with their second texts; progress is shown."""
    second = None if split.second == OTHER_CAPTION else split.second
    quiet = not Console().is_terminal
    for number in track(range(split.n_images), f"{what} {split.name}", disable=quiet):
        yield split.records[number], None if second is None else second[number]


def names_of(splits: dict[str, Split]) -> dict[str, list[str]]:
    """What to call each picture: its path below the folder that holds them all.

    Pictures inside other files, whose names may repeat by split or by file, get the split, and then
    the file, as folders where they do. Raises DataError for two of one name in one file.
    """
    files = {
        name: [str(r.extra.get("file") or r.image) for r in split.records]
        for name, split in splits.items()
    }
    if any(isinstance(r.image, Slice) for split in splits.values() for r in split.records):
        return _apart(splits, {name: list(map(_inside, own)) for name, own in files.items()})
    whole = [file for own in files.values() for file in own if os.path.isabs(file)]
    base = os.path.commonpath([os.path.dirname(file) for file in whole]) if whole else ""
    return {
        name: [
            os.path.relpath(file, base) if os.path.isabs(file) else _inside(file) for file in own
        ]
        for name, own in files.items()
    }


def _apart(splits: dict[str, Split], names: dict[str, list[str]]) -> dict[str, list[str]]:
    """``names`` of pictures inside other files, made different."""
    boxes = {part: [Path(r.image.path) for r in split.records] for part, split in splits.items()}  # type: ignore[union-attr]
    by_split = {part: [f"{part}/{name}" for name in own] for part, own in names.items()}
    by_box = {
        part: [f"{part}/{box.stem}/{name}" for box, name in zip(boxes[part], own, strict=True)]
        for part, own in names.items()
    }
    for found in (names, by_split, by_box):
        twice = repeated(name for own in found.values() for name in own)
        if twice is None:
            return found
    part, box, name = str(twice).split("/", 2)
    raise DataError(
        f"{next(path for path in boxes[part] if path.stem == box)}: two pictures of {part} are "
        f"called {name}, and one would be written over the other; give them names of their own"
    )


def repeated(names: Iterable[str]) -> str | None:
    """The first of ``names`` that stands twice, whatever its case; None: there is none."""
    seen: set[str] = set()
    for name in names:
        if (known := name.casefold()) in seen:
            return name
        seen.add(known)
    return None


def _inside(file: str) -> str:
    """``file``, never above the folder it is written to."""
    parts = [part for part in PurePosixPath(file).parts if part not in ("..", "/")]
    return "/".join(parts)


def put_picture(record: Record, name: str, folder: Path) -> str:
    """The path of the picture relative to ``folder``; written to its images if it is no file."""
    if not isinstance(record.image, Slice):
        return os.path.relpath(str(record.image), folder)
    path = folder / IMAGES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(read_bytes(record.image))
    except FileExistsError as error:
        raise DataError(
            f"{path}: exists already, and would be written over; name a TARGET in a folder of its "
            "own"
        ) from error
    return f"{IMAGES}/{name}"


def train_with(root: Path, name: str) -> str:
    """What to type to train on a set below ``root`` that is no published one."""
    return f"train with: data=f30k data.name={name} data.root={root} 'data.protocols=[full]'"


def write_karpathy(target: Path, splits: dict[str, Split], options: Options) -> list[str]:
    """``dataset_<name>.json`` at ``target``, or in the folder ``target``."""
    if target.suffix != ".json":
        target = target / f"dataset_{options.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    names, images = names_of(splits), []
    for part, split in splits.items():
        for (record, _), name in zip(each(split, "writing"), names[part], strict=True):
            folder, file = os.path.split(put_picture(record, name, target.parent))
            ids = {"imgid": record.image_id}
            if coco_id(file) == record.image_id:  # else the reader would take another id
                ids["cocoid"] = record.image_id
            sentences = [
                {"raw": text, "tokens": text.lower().split(), "imgid": record.image_id, "sentid": n}
                for text, n in zip(record.captions, record.caption_ids, strict=True)
            ]
            images.append(
                {
                    "filepath": folder,
                    "filename": file,
                    **ids,
                    "split": part,
                    "sentids": list(record.caption_ids),
                    "sentences": sentences,
                }
            )
    content = {"images": images, "dataset": options.name}
    with atomic_write(target) as out:
        out.write(json.dumps(content, ensure_ascii=False).encode())
    return [train_with(target.parent, options.name), *_second_file(splits, target.parent)]


def write_table(target: Path, splits: dict[str, Split], options: Options) -> list[str]:
    """One table with a column ``split`` at ``target`` (in the folder ``target``: pairs.csv)."""
    if target.suffix not in (*SEPARATORS, ".jsonl", ".parquet"):
        target = target / "pairs.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    names, rows = names_of(splits), []
    for part, split in splits.items():
        for (record, second), name in zip(each(split, "writing"), names[part], strict=True):
            image = put_picture(record, name, target.parent)
            for text, number in zip(record.captions, record.caption_ids, strict=True):
                row: dict[str, Any] = {"image": image, "caption": text, "split": part}
                row |= {"image_id": record.image_id, "caption_id": number}
                rows.append(row if second is None else {**row, options.second_key: second})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(target) as file:
        file.write(_table(target.suffix, columns, rows))
    return [f"train with: data=table data.train={target}"]


def _table(ending: str, columns: list[str], rows: list[dict[str, Any]]) -> bytes:
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if ending == ".parquet":
        import pyarrow as pa  # imported late, as in the readers
        import pyarrow.parquet as pq

        file = pa.BufferOutputStream()
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in columns}), file)
        return file.getvalue().to_pybytes()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, delimiter=SEPARATORS[ending], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_arrow(target: Path, splits: dict[str, Split], options: Options) -> list[str]:
    """``<name>_caption_karpathy_<split>.arrow`` in the folder ``target``, as ViLT's scripts do.

    Two columns are added, ``imgid`` and ``sentids``, which keep the ids.
    """
    import pyarrow as pa  # imported late, as in the readers

    target.mkdir(parents=True)
    names = names_of(splits)
    short = repeated(os.path.basename(name) for own in names.values() for name in own) is None
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
            for (record, _), name in zip(each(split, "writing"), names[part], strict=True):
                row = {"image": read_bytes(record.image), "caption": list(record.captions)}
                row |= {"image_id": os.path.basename(name) if short else name, "split": part}
                rows.append(row | {"imgid": record.image_id, "sentids": list(record.caption_ids)})
                if len(rows) == ROWS:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                    rows = []
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return [train_with(target, options.name), *_second_file(splits, target)]


def write_shards(target: Path, splits: dict[str, Split], options: Options) -> list[str]:
    """``<split>/00000.tar``, ... in the folder ``target``; all captions are in the .json."""
    names, number = names_of(splits), 0
    for part, split in splits.items():
        (target / part).mkdir(parents=True)
        tar: tarfile.TarFile | None = None
        try:
            for place, (record, second) in enumerate(each(split, "writing")):
                if place % options.shard_size == 0:
                    if tar is not None:
                        tar.close()
                    path = target / part / f"{place // options.shard_size:05d}.tar"
                    tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)
                assert tar is not None
                name = names[part][place]
                meta = {
                    "image_id": record.image_id,
                    "file": name,
                    "captions": list(record.captions),
                    "caption_ids": list(record.caption_ids),
                    **({} if second is None else {options.second_key: second}),
                }
                ending = Path(name).suffix.lower().lstrip(".")
                if ending not in picture_endings():  # by which the reader knows a picture
                    ending = "jpg"
                _add(tar, f"{number:09d}.{ending}", read_bytes(record.image))
                _add(tar, f"{number:09d}.txt", record.captions[0].encode())
                _add(tar, f"{number:09d}.json", json.dumps(meta, ensure_ascii=False).encode())
                number += 1
        finally:
            if tar is not None:
                tar.close()
    return [f"train with: data=yfcc data.shards={target} (any data= with data.layout=shards)"]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # its times and owner are 0: the same bytes every time
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _second_file(splits: dict[str, Split], folder: Path) -> list[str]:
    """``second.json`` for layouts that have no place for second texts; what to tell of it."""
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
