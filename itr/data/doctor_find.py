"""Which layouts lie in a folder, under which names, with which splits. Nothing is judged here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from itr.data import arrow, coco, karpathy, lists, pair_table, precomp, shards
from itr.data.layouts import KINDS
from itr.data.options import DataConfig
from itr.errors import DataError

SPLIT_NAMES = ("train", "restval", "val", "dev", "test", "testall")
NAMED = {  # layouts with a file for each split: below which folders, and how files are called
    "lists": (lists.FOLDERS, lists.NAMES),
    "arrow": (arrow.FOLDERS, arrow.NAMES),
}


@dataclass(frozen=True)
class Found:
    """A layout, where it lies, what its files are called and the splits they hold."""

    layout: str
    root: Path  # as data.root
    name: str  # as data.name
    splits: tuple[str, ...]  # as the files call them

    @property
    def kind(self) -> str:
        """``regions`` or ``pixels``."""
        return KINDS[self.layout]


def find_layouts(root: Path) -> list[Found]:
    """Every layout in ``root``, in the order in which they are looked for."""
    finders = {
        "precomp": _precomp,
        "karpathy": _karpathy,
        "lists": lambda root: _named("lists", root),
        "coco": _coco,
        "arrow": lambda root: _named("arrow", root),
        "table": _table,
        "shards": _shards,
    }
    return [found for finder in finders.values() for found in finder(root)]


def _precomp(root: Path) -> Iterator[Found]:
    for folder in (root, *sorted(root.glob("*_precomp")), *sorted(root.glob("*/precomp"))):
        if splits := precomp.splits_in(folder):
            name = folder.parent.name if folder.name == "precomp" else folder.name
            yield Found("precomp", folder, name.removesuffix("_precomp"), _ordered(splits))


def _karpathy(root: Path) -> Iterator[Found]:
    folders = (root, *(f for f in sorted(root.iterdir()) if f.is_dir()))
    for folder in folders:
        for path in sorted(folder.glob(f"{karpathy.PREFIX}*.json")):
            name = path.stem.removeprefix(karpathy.PREFIX)
            yield Found("karpathy", folder, name, _ordered(_karpathy_splits(path)))


def _karpathy_splits(path: Path) -> list[str]:
    """Names of the splits; ``train`` where the file cannot be read, for the reader to say why."""
    try:
        images = json.loads(path.read_bytes().decode("utf-8-sig"))["images"]
        names = {image["split"] for image in images}
        return [karpathy.FOLDED.get(name, name) for name in names] or ["train"]
    except (ValueError, TypeError, KeyError):
        return ["train"]


def _named(layout: str, root: Path) -> Iterator[Found]:
    folders, pattern = NAMED[layout]
    for folder in folders:
        names: dict[str, list[str]] = {}
        for path in sorted((root / folder).glob("*")):
            if match := pattern.fullmatch(path.name):
                names.setdefault(match["name"], []).append(match["split"])
        for name, splits in names.items():
            if "train" in splits and layout == "arrow":
                splits = [split for split in splits if split != arrow.FOLDED]
            yield Found(layout, root / folder, name, _ordered(splits))


def _coco(root: Path) -> Iterator[Found]:
    place = coco.find(DataConfig(root.name, str(root)))
    if place is not None:
        yield Found("coco", root, root.name, _ordered(place.splits()))


def _table(root: Path) -> Iterator[Found]:
    names: dict[str, list[str]] = {}
    for path in sorted(root.iterdir()):
        if match := pair_table.NAMES.fullmatch(path.name):
            names.setdefault(match["name"] or "", []).append(match["split"])
    for name in names:
        try:
            place = pair_table.find(DataConfig(name or root.name, str(root)))
            splits = ["train"] if place is None else place.splits()
        except DataError:  # for the reader to say
            splits = ["train"]
        yield Found("table", root, name or root.name, _ordered(splits))


def _shards(root: Path) -> Iterator[Found]:
    for folder in shards.FOLDERS:
        if not (root / folder).is_dir():
            continue
        place = shards.find(DataConfig(root.name, str(root / folder), shards=None))
        if place is not None and place.path == root / folder:
            yield Found("shards", root / folder, root.name, _ordered(place.splits()))


def _ordered(splits: list[str]) -> tuple[str, ...]:
    known = {name: place for place, name in enumerate(SPLIT_NAMES)}
    return tuple(sorted(set(splits), key=lambda s: (known.get(s, len(known)), s)))
