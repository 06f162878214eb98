"""What a data set is called and where it lies; finds its layout on disk and opens splits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.precomp import CAPS, IMS, read_split, splits_in
from itr.data.records import Split
from itr.errors import ConfigError, DataError
from itr.instantiate import nearest

LAYOUTS = ("auto", "precomp")


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
    cache: str = ".cache/itr"  # where token ids are kept
    prepare: Any = None  # node of what makes the data set on first use


def open_split(data: DataConfig, split: str, kind: str) -> Split:
    """The split ``train``, ``val`` or ``test`` of ``data``, or one named as on disk.

    ``kind`` is what the model wants of an image: ``regions`` or ``pixels``. Raises ConfigError for
    an option that cannot be used, DataError (naming the file) for data that cannot.
    """
    if data.layout not in LAYOUTS:
        raise ConfigError(
            f"data.layout={data.layout}: unknown{nearest(data.layout, LAYOUTS)} "
            f"(known: {', '.join(LAYOUTS)})"
        )
    if kind != "regions":
        raise ConfigError(
            f"the model wants {kind}, but only pre-extracted regions (layout precomp) can be read "
            "so far; choose a model that works on regions, such as model=hrem"
        )
    if data.dev_captions is not None and data.dev_captions < 1:
        raise ConfigError(f"data.dev_captions={data.dev_captions}: expected null or at least 1")
    name = data.splits.get(split, split)
    folder, notes = find_precomp(data, name)
    opened = read_split(folder, name, data.dev_captions)
    return dataclasses.replace(opened, notes=(*notes, *opened.notes))


def find_precomp(data: DataConfig, split: str) -> tuple[Path, tuple[str, ...]]:
    """The folder below ``data.root`` with SCAN's files, and what to log about the choice.

    ``split`` is a name on disk; a folder that holds it is preferred. Raises DataError that lists
    what was expected and what was found.
    """
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        raise DataError(f"data.root={data.root}: no such folder; type data.root=DIR")
    expected = [root, root / f"{data.name}_precomp", root / data.name / "precomp"]
    holding = [folder for folder in expected if splits_in(folder)]
    notes: tuple[str, ...] = ()
    if not holding:
        holding = [f for f in sorted(root.glob("*_precomp")) if f not in expected and splits_in(f)]
        if len(holding) == 1:
            notes = (f"no folder is named after data.name={data.name}: using {holding[0]}",)
    if not holding or (len(holding) > 1 and holding[0] not in expected):
        found = sorted(f"{p.name}/" if p.is_dir() else p.name for p in root.iterdir())
        shown = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "")
        raise DataError(
            f"data.root={data.root}: no precomp layout for data.name={data.name}; expected "
            f"<split>{IMS} and <split>{CAPS} in one of {', '.join(map(str, expected))}; "
            f"found there: {shown or 'nothing'}. Type data.root=DIR or data.name=NAME"
        )
    return next((f for f in holding if split in splits_in(f)), holding[0]), notes
