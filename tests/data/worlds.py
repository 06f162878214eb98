"""A small dataset in every layout, written without the writers under test."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.image_files import encoded, photo

PARTS = ("train", "val", "test")
PIXEL_LAYOUTS = ("karpathy", "lists", "coco", "arrow", "table", "shards", "folder")
WORDS = (
    "red blue green old young tall small happy wooden bright dog cat man woman child tree".split()
)


@dataclass(frozen=True)
class Item:
    """An image of the dataset."""

    number: int
    part: str
    captions: tuple[str, ...]
    jpeg: bytes
    second: str

    @property
    def cocoid(self) -> int:
        return 391895 + 7 * self.number

    @property
    def file(self) -> str:
        return f"COCO_val2014_{self.cocoid:012d}.jpg"

    @property
    def sentids(self) -> list[int]:
        return [10 * self.number + index for index in range(len(self.captions))]


def make_items(sizes: tuple[int, int, int] = (6, 3, 3), captions: int | None = None) -> list[Item]:
    """Images with 1 to 7 captions each, or with ``captions``."""
    items: list[Item] = []
    for part, size in zip(PARTS, sizes, strict=True):
        for _ in range(size):
            n = len(items)
            texts = [
                f"A {WORDS[(n + k) % 10]} {WORDS[10 + n % 6]}, «{n}» {WORDS[k % 10]}."
                for k in range(captions or 1 + n % 7)
            ]
            jpeg = encoded(photo(32 + n % 5, 32, seed=n))
            items.append(Item(n, part, tuple(texts), jpeg, f"a picture of {WORDS[n % 16]} {n}"))
    return items


def write_image_files(folder: Path, items: list[Item]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        (folder / item.file).write_bytes(item.jpeg)


def write_karpathy(root: Path, items: list[Item], name: str = "coco") -> None:
    write_image_files(root / "val2014", items)
    images = [
        {
            "filepath": "val2014",
            "filename": item.file,
            "cocoid": item.cocoid,
            "imgid": item.number,
            # COCO's restval is read as train
            "split": "restval" if item.part == "train" and item.number % 2 else item.part,
            "sentences": [
                {"raw": text, "tokens": text.split(), "sentid": number, "imgid": item.number}
                for text, number in zip(item.captions, item.sentids, strict=True)
            ],
        }
        for item in items
    ]
    (root / f"dataset_{name}.json").write_text(json.dumps({"images": images}))


def write_lists(root: Path, items: list[Item], name: str = "coco") -> None:
    write_image_files(root / "val2014", items)
    for part in PARTS:
        own = [item for item in items if item.part == part]
        listed: list[dict] = [
            {"image": f"val2014/{i.file}", "caption": list(i.captions)} for i in own
        ]
        if part == "train":
            listed = [
                {"image": f"val2014/{i.file}", "caption": text, "image_id": f"coco_{i.cocoid}"}
                for i in own
                for text in i.captions
            ]
        (root / f"{name}_{part}.json").write_text(json.dumps(listed))


def write_coco(root: Path, items: list[Item]) -> None:
    (root / "annotations").mkdir(parents=True)
    for part in PARTS:
        own = [item for item in items if item.part == part]
        write_image_files(root / f"{part}2014", own)
        images = [{"id": i.cocoid, "file_name": i.file, "width": 9, "height": 9} for i in own]
        notes = [
            {"id": number, "image_id": i.cocoid, "caption": text}
            for i in own
            for text, number in zip(i.captions, i.sentids, strict=True)
        ]
        notes.sort(key=lambda note: (note["id"] % 10, note["id"]))  # in COCO's they are mixed
        content = {"info": {}, "licenses": [], "images": images, "annotations": notes}
        (root / "annotations" / f"captions_{part}2014.json").write_text(json.dumps(content))


def write_arrow(root: Path, items: list[Item], name: str = "coco") -> None:
    root.mkdir(parents=True, exist_ok=True)
    for part in ("train", "restval", "val", "test"):
        own = [i for i in items if i.part == ("train" if part == "restval" else part)]
        if part in ("train", "restval"):
            own = own[: len(own) // 2] if part == "train" else own[len(own) // 2 :]
        table = pa.table(
            {
                "image": pa.array([i.jpeg for i in own], pa.binary()),
                "caption": pa.array([list(i.captions) for i in own], pa.list_(pa.string())),
                "image_id": [i.file for i in own],
                "split": [part] * len(own),
            }
        )
        path = root / f"{name}_caption_karpathy_{part}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)  # several record batches


def rows_of(items: list[Item]) -> list[dict]:
    return [
        {
            "image": f"pictures/{item.file}",
            "caption": text,
            "split": item.part,
            "caption_id": number,
            "synthetic_caption": item.second,
        }
        for item in items
        for text, number in zip(item.captions, item.sentids, strict=True)
    ]


def write_table(root: Path, items: list[Item], ending: str = ".csv") -> Path:
    write_image_files(root / "pictures", items)
    rows, path = rows_of(items), root / f"pairs{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    elif ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=",\t"[ending == ".tsv"])
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_shards(root: Path, items: list[Item], size: int = 2) -> None:
    for part in PARTS:
        own = [item for item in items if item.part == part]
        for first in range(0, len(own), size):
            members = []
            for item in own[first : first + size]:
                meta = {
                    "image_id": item.cocoid,
                    "file": item.file,
                    "captions": item.captions,
                    "caption_ids": item.sentids,
                    "synthetic_caption": item.second,
                }
                members += [
                    (f"{item.number:06d}.jpg", item.jpeg),
                    (f"{item.number:06d}.txt", item.captions[0].encode()),
                    (f"{item.number:06d}.json", json.dumps(meta).encode()),
                ]
            write_tar(root / "wds" / part / f"{first // size:05d}.tar", members)


def write_folder(root: Path, items: list[Item]) -> None:
    """As img2dataset writes files: a .txt (one caption) or a .json (several) beside each image."""
    for item in items:
        path = root / item.part / f"{item.number // 4:05d}" / item.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.jpeg)
        meta: dict = {"synthetic_caption": item.second}
        if len(item.captions) == 1:
            path.with_suffix(".txt").write_text(item.captions[0] + "\n", "utf-8")
        else:
            meta["captions"] = item.captions
        path.with_suffix(".json").write_text(json.dumps(meta))


def write_precomp(root: Path, items: list[Item], name: str = "coco", width: int = 12) -> None:
    """Needs items with the same number of captions. dev and test in rows of five, as SCAN's."""
    folder = root / f"{name}_precomp"
    folder.mkdir(parents=True)
    for part, on_disk in zip(PARTS, ("train", "dev", "testall"), strict=True):
        own = [item for item in items if item.part == part]
        rng = np.random.default_rng(len(own))
        array = rng.standard_normal((len(own), 6, width)).astype(np.float32)
        ids = [str(item.number) for item in own]
        if part != "train":
            array, ids = np.repeat(array, 5, 0), [number for number in ids for _ in range(5)]
        np.save(folder / f"{on_disk}_ims.npy", array)
        texts = [text for item in own for text in item.captions]
        (folder / f"{on_disk}_caps.txt").write_text("\n".join(texts) + "\n", "utf-8")
        (folder / f"{on_disk}_ids.txt").write_text("\n".join(ids) + "\n")
    mapping = {str(item.number): f"val2014/{item.file}" for item in items}
    (folder / "id_mapping.json").write_text(json.dumps(mapping))


def write(layout: str, root: Path, items: list[Item]) -> None:
    """The world in ``layout`` below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    writers = {
        "karpathy": write_karpathy,
        "lists": write_lists,
        "coco": write_coco,
        "arrow": write_arrow,
        "table": write_table,
        "shards": write_shards,
        "folder": write_folder,
        "precomp": write_precomp,
    }
    writers[layout](root, items)
