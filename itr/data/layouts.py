"""What a data set is called and where it lies; finds its layout on disk and opens splits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data import karpathy, lists, precomp, shards
from itr.data.images import DECODERS
from itr.data.precomp import CAPS, IMS, splits_in
from itr.data.records import OTHER_CAPTION, Split
from itr.data.second import read_second
from itr.errors import ConfigError, DataError
from itr.instantiate import nearest

# What a layout holds; of several in one folder the first that fits is read.
KINDS = {"precomp": "regions", "karpathy": "pixels", "lists": "pixels", "shards": "pixels"}
LAYOUTS = ("auto", *KINDS)
SHARD_FOLDERS = ("", "wds", "shards")  # below data.root


@dataclass
class DataConfig:
    """Options of ``conf/data/<name>.yaml``."""

    name: str
    root: str
    layout: str = "auto"  # how the files are laid out; auto: found by looking
    splits: dict[str, str] = field(  # train, val, test -> names on disk
        default_factory=lambda: {"train": "train", "val": "dev", "test": "test"}
    )
    protocols: list[str] = field(default_factory=list)  # how the test split is evaluated
    dev_captions: int | None = None  # authors' habit: a split `dev` is cut to 5000; None: all
    images: str | None = None  # folder of the pictures; None: found beside the annotations
    decoder: str = "torchvision"  # of pictures; pillow: the authors' arithmetic, slower
    second_text: str | None = None  # other_caption, or a JSON file image id -> caption; None: the
    # synthetic captions that shards hold
    shards: str | None = None  # folder of .tar files, or DIR/{00000..01505}.tar; None: looked for
    second_key: str = "synthetic_caption"  # of the .json members
    held_out: int = 0  # samples at the end of the shards that are test, and as many before val
    max_broken: float = 0.01  # share of broken samples in shards at which a run stops
    cache: str = ".cache/itr"  # where token ids are kept
    prepare: Any = None  # node of what makes the data set on first use


def open_split(data: DataConfig, split: str, kind: str, second: bool = False) -> Split:
    """The split ``train``, ``val`` or ``test`` of ``data``, or one named as on disk.

    ``kind`` is what the model wants of an image: ``regions`` or ``pixels``; ``second``: it wants a
    second text, too. Raises ConfigError for an option that cannot be used, DataError (naming the
    file) for data that cannot.
    """
    _check_options(data, kind)
    if kind == "regions":
        return _read_precomp(data, split)
    # Only shards hold synthetic captions; everything else has its pictures and captions in files.
    own_second = second and data.second_text is None
    files = ("karpathy", "lists")
    order = ("shards", *files) if own_second else (*files, "shards")
    for layout in order if data.layout == "auto" else (data.layout,):
        opened = PIXEL_READERS[layout](data, split)
        if opened is not None:
            return _with_second(data, opened) if second else opened
    raise DataError(
        f"data.root={data.root}: no pictures for data.name={data.name}; expected "
        f"{karpathy.PREFIX}{data.name}.json (Karpathy's layout), {data.name}_{split}.json (a list, "
        f"as ALBEF's) or shards (*.tar); found {_listing(_root(data))}. Type data.root=DIR, "
        "data.name=NAME or data.shards=DIR"
    )


def _with_second(data: DataConfig, split: Split) -> Split:
    """``split`` with the second text that ``data`` names; None: what the files hold."""
    if data.second_text is None:
        return split
    if data.second_text == OTHER_CAPTION:
        return dataclasses.replace(split, second=OTHER_CAPTION)
    texts = read_second(Path(data.second_text).expanduser(), split.records)
    return dataclasses.replace(split, second=texts)


def _check_options(data: DataConfig, kind: str) -> None:
    for key, value, known in (
        ("layout", data.layout, LAYOUTS),
        ("decoder", data.decoder, DECODERS),
    ):
        if value not in known:
            raise ConfigError(
                f"data.{key}={value}: unknown{nearest(value, known)} (known: {', '.join(known)})"
            )
    if data.layout != "auto" and KINDS[data.layout] != kind:
        fitting = [name for name, holds in KINDS.items() if holds == kind]
        raise ConfigError(
            f"data.layout={data.layout}: holds {KINDS[data.layout]}, but the model wants {kind}; "
            f"type data.layout={fitting[0]} or leave it at auto"
        )
    if data.dev_captions is not None and data.dev_captions < 1:
        raise ConfigError(f"data.dev_captions={data.dev_captions}: expected null or at least 1")


def _read_precomp(data: DataConfig, split: str) -> Split:
    name = data.splits.get(split, split)
    folder, notes = find_precomp(data, name)
    opened = precomp.read_split(folder, name, data.dev_captions)
    return dataclasses.replace(opened, notes=(*notes, *opened.notes))


def _read_karpathy(data: DataConfig, split: str) -> Split | None:
    """None: there are no annotations."""
    if data.shards is not None and data.layout == "auto":
        return None
    path, notes = karpathy.find_annotations(_root(data), data.name)
    if path is None:
        return None
    opened = karpathy.read_split(path, data.splits.get(split, split), data.images)
    return dataclasses.replace(opened, decoder=data.decoder, notes=(*notes, *opened.notes))


def _read_list(data: DataConfig, split: str) -> Split | None:
    """None: there is no list of this split."""
    if data.shards is not None and data.layout == "auto":
        return None
    path = lists.find_list(_root(data), data.name, data.splits.get(split, split))
    if path is None:
        return None
    return dataclasses.replace(lists.read_list(path, split, data.images), decoder=data.decoder)


def _read_shards(data: DataConfig, split: str) -> Split | None:
    """None: there are no shards, or they do not hold this split."""
    if data.shards is not None:
        paths = shards.find_shards(data.shards)
    else:
        folders = [_root(data) / name for name in SHARD_FOLDERS]
        folder = next((f for f in folders if any(f.glob("*.tar"))), None)
        if folder is None:
            return None
        paths = shards.find_shards(str(folder))
    opened = shards.read_split(
        paths, split, data.second_key, data.held_out, data.max_broken, data.cache
    )
    return dataclasses.replace(opened, decoder=data.decoder)


PIXEL_READERS = {"karpathy": _read_karpathy, "lists": _read_list, "shards": _read_shards}


def _root(data: DataConfig) -> Path:
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        raise DataError(
            f"data.root={data.root}: no such folder; expected region arrays (<split>{IMS}, "
            f"<split>{CAPS}, also in {data.name}_precomp/ or {data.name}/precomp/), pictures with "
            "dataset_*.json, or tar shards; found nothing. Type data.root=DIR"
        )
    return root


def _listing(root: Path) -> str:
    found = sorted(f"{p.name}/" if p.is_dir() else p.name for p in root.iterdir())
    return (", ".join(found[:12]) + (", ..." if len(found) > 12 else "")) or "nothing"


def find_precomp(data: DataConfig, split: str) -> tuple[Path, tuple[str, ...]]:
    """The folder below ``data.root`` with SCAN's files, and what to log about the choice.

    ``split`` is a name on disk; a folder that holds it is preferred. Raises DataError that lists
    what was expected and what was found.
    """
    root = _root(data)
    expected = [root, root / f"{data.name}_precomp", root / data.name / "precomp"]
    holding = [folder for folder in expected if splits_in(folder)]
    notes: tuple[str, ...] = ()
    if not holding:
        holding = [f for f in sorted(root.glob("*_precomp")) if f not in expected and splits_in(f)]
        if len(holding) == 1:
            notes = (f"no folder is named after data.name={data.name}: using {holding[0]}",)
    if not holding or (len(holding) > 1 and holding[0] not in expected):
        raise DataError(
            f"data.root={data.root}: no precomp layout for data.name={data.name}; expected "
            f"<split>{IMS} and <split>{CAPS} in one of {', '.join(map(str, expected))}; "
            f"found there: {_listing(root)}. Type data.root=DIR or data.name=NAME"
        )
    return next((f for f in holding if split in splits_in(f)), holding[0]), notes
