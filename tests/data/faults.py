"""Small datasets with one fault each: a layout of `worlds` and a change to its files."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.data.worlds import write_tar

WARNED, REFUSED = 1, 2  # exit codes of `itr data check`


@dataclass(frozen=True)
class Fault:
    """A fault that ``corrupt(root)`` creates; the check and training report it with ``words``."""

    layout: str
    corrupt: Callable[[Path], None]
    level: int
    words: tuple[str, ...]
    options: tuple[str, ...] = ()  # beside data.root
    remaining: int = 8  # training images that remain


TOLERANT = ("data.max_broken=0.5",)


def annotations(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change the fourth image (train) of the Karpathy annotations."""

    def corrupt(root: Path) -> None:
        path = root / "dataset_coco.json"
        content = json.loads(path.read_text())
        change(content["images"][3])
        path.write_text(json.dumps(content))

    return corrupt


def entries(change: Callable[[list[dict]], Any]) -> Callable[[Path], None]:
    def corrupt(root: Path) -> None:
        path = root / "dataset_coco.json"
        content = json.loads(path.read_text())
        change(content["images"])
        path.write_text(json.dumps(content))

    return corrupt


def image(part: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    """Change the bytes of the first image of ``part`` (None: remove it)."""

    def corrupt(root: Path) -> None:
        images = json.loads((root / "dataset_coco.json").read_text())["images"]
        name = next(i["filename"] for i in images if i["split"] == part)
        path = root / "val2014" / name
        content = change(path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return corrupt


def cut(name: str, size: int | float) -> Callable[[Path], None]:
    """Keep the first bytes (a share of them) of a file."""

    def corrupt(root: Path) -> None:
        path = next(root.rglob(name))
        whole = path.read_bytes()
        path.write_bytes(whole[: size if isinstance(size, int) else int(size * len(whole))])

    return corrupt


def array(name: str, change: Callable[[np.ndarray], Any], **options: Any) -> Callable[[Path], None]:
    def corrupt(root: Path) -> None:
        path = next(root.rglob(f"{name}_ims.npy"))
        np.save(path, change(np.load(path)), **options)

    return corrupt


def put(index: tuple[int, ...] | int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return change


def lines(name: str, change: Callable[[list[str]], list[str]], encoding: str = "utf-8"):
    def corrupt(root: Path) -> None:
        path = next(root.rglob(name))
        changed = change(path.read_text("utf-8").splitlines())
        path.write_text("\n".join(changed) + "\n", encoding)

    return corrupt


def member(kind: str, content: bytes | None) -> Callable[[Path], None]:
    """Replace (None: leave out) a member of the first sample of the second training tar."""

    def corrupt(root: Path) -> None:
        path = root / "wds" / "train" / "00001.tar"
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        index = next(n for n, (name, _) in enumerate(members) if name.endswith(kind))
        members[index : index + 1] = [] if content is None else [(members[index][0], content)]
        write_tar(path, members)

    return corrupt


def header(root: Path) -> None:
    """Corrupt the header of the second sample: `tarfile` stops there without an error."""
    path = root / "wds" / "train" / "00001.tar"
    whole = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmembers()[3].offset
    whole[start : start + 512] = b"\x55" * 512
    path.write_bytes(bytes(whole))


def column(root: Path) -> None:
    path = root / "coco_caption_karpathy_val.arrow"
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    table = table.rename_columns(["picture", "caption", "image_id", "split"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def both_lists(root: Path) -> None:
    """List an image of train in val, too."""
    train, val = (root / f"coco_{part}.json" for part in ("train", "val"))
    first = json.loads(train.read_text())[0]
    items = json.loads(val.read_text())
    val.write_text(json.dumps([*items, {"image": first["image"], "caption": ["A cat."]}]))


def same_bytes(root: Path) -> None:
    """Copy an image of train to val under another name."""
    images = json.loads((root / "dataset_coco.json").read_text())["images"]
    one, other = (next(i["filename"] for i in images if i["split"] == s) for s in ("train", "val"))
    folder = root / "val2014"
    (folder / other).write_bytes((folder / one).read_bytes())


def clash(images: list[dict]) -> None:
    images[3]["cocoid"] = images[2]["cocoid"]


def twice(images: list[dict]) -> None:
    images.append({**images[3], "split": "test", "cocoid": 77, "imgid": 99})


FAULTS = {
    "truncated jpeg": Fault("karpathy", image("train", lambda b: b[: len(b) // 2]), WARNED,
                            ("COCO_val2014", "decoded"), TOLERANT, 7),
    "too many broken jpegs": Fault("karpathy", image("train", lambda b: b[: len(b) // 2]),
                                   REFUSED, ("COCO_val2014", "max_broken")),
    "empty jpeg": Fault("karpathy", image("train", lambda b: b""), WARNED, ("COCO_val2014",),
                        TOLERANT, 7),
    "fake jpeg": Fault("karpathy", image("train", lambda b: b"<html>404</html>"), WARNED,
                       ("COCO_val2014",), TOLERANT, 7),
    "truncated jpeg in val": Fault("karpathy", image("val", lambda b: b[: len(b) // 2]), REFUSED,
                                   ("COCO_val2014", "1 of 4"), TOLERANT),
    "missing image": Fault("karpathy", image("train", lambda b: None), REFUSED,
                           ("1 of 8", "COCO_val2014")),
    "json cut short": Fault("karpathy", cut("dataset_coco.json", 0.7), REFUSED,
                            ("dataset_coco.json", "not valid JSON")),
    "unknown split": Fault("karpathy", annotations(lambda i: i.update(split="tarin")), WARNED,
                           ("dataset_coco.json", "tarin (1"), (), 7),
    "missing split": Fault("karpathy", annotations(lambda i: i.pop("split")), REFUSED,
                           ("images[3]", "'split' is missing")),
    "empty caption": Fault("karpathy", annotations(lambda i: i["sentences"][0].update(raw=" ")),
                           REFUSED, ("images[3]", "empty caption")),
    "image id clash": Fault("karpathy", entries(clash), REFUSED, ("images[3]", "image id")),
    "image in two splits": Fault("karpathy", entries(twice), REFUSED, ("COCO_val2014", "'test'")),
    "image in two lists": Fault("lists", both_lists, REFUSED, ("COCO_val2014", "also in")),
    "string for a list": Fault("karpathy", annotations(lambda i: i.update(sentences="A cat.")),
                               REFUSED, ("images[3]", "'sentences' is str")),
    "missing key": Fault("karpathy", annotations(lambda i: i.pop("filename")), REFUSED,
                         ("images[3]", "'filename' is missing")),
    "caption count off": Fault("precomp", lines("train_caps.txt", lambda t: t[:-1]), REFUSED,
                               ("train_caps.txt", "39 captions")),
    "nan features": Fault("precomp", array("train", put((2, 1, 3), np.nan)), REFUSED,
                          ("train_ims.npy", "row 2")),
    "wrong dtype": Fault("precomp", array("train", lambda a: a.astype(np.float64)), REFUSED,
                         ("train_ims.npy", "float64")),
    "flat array": Fault("precomp", array("train", lambda a: a[:, 0]), REFUSED,
                        ("train_ims.npy", "shape (8, 12)")),
    "flat features": Fault("precomp", array("train", put(3, 0.0)), WARNED,
                           ("train_ims.npy", "one value only")),
    "differing widths": Fault("precomp", array("dev", lambda a: a[..., :-1]), REFUSED,
                              ("dev_ims.npy", "width")),
    "pickled array": Fault("precomp", array("train", lambda a: a.astype(object)), REFUSED,
                           ("train_ims.npy", "Python objects")),
    "truncated npy": Fault("precomp", cut("train_ims.npy", 0.6), REFUSED,
                           ("train_ims.npy", "truncated")),
    "latin-1 captions": Fault("precomp", lines("train_caps.txt", list, "latin-1"), REFUSED,
                              ("train_caps.txt, line 1", "not UTF-8")),
    "blank line": Fault("precomp", lines("dev_caps.txt", lambda t: [*t[:3], "", *t[4:]]), REFUSED,
                        ("dev_caps.txt, line 4", "empty caption")),
    "bad id": Fault("precomp", lines("train_ids.txt", lambda t: ["zero", *t[1:]]), REFUSED,
                    ("train_ids.txt, line 1", "'zero'")),
    "truncated tar": Fault("shards", cut("train/00001.tar", 0.4), WARNED,
                           ("00001.tar", "truncated"), TOLERANT, 6),
    "empty tar": Fault("shards", cut("train/00001.tar", 0), WARNED, ("00001.tar", "not read"),
                       TOLERANT, 6),
    "corrupt tar": Fault("shards", header, WARNED, ("00001.tar", "not read"), TOLERANT, 6),
    "too much of a tar lost": Fault("shards", header, REFUSED, ("00001.tar", "max_broken")),
    "missing member": Fault("shards", member("jpg", None), WARNED, ("left out: 1 with",),
                            TOLERANT, 7),
    "missing text member": Fault("shards", member("txt", None), WARNED,
                                 ("left out: 1 with no .txt",), TOLERANT, 7),
    "bad json in a tar": Fault("shards", member("json", b'{"a": '), WARNED,
                               ("left out: 1 with", "JSON"), TOLERANT, 7),
    "truncated arrow": Fault("arrow", cut("coco_caption_karpathy_val.arrow", 0.5), REFUSED,
                             ("val.arrow", "Arrow")),
    "wrong column": Fault("arrow", column, REFUSED, ("val.arrow", "no column 'image'")),
}  # fmt: skip
