"""Which layouts lie in a folder, under which names, with which splits. Nothing is judged here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from itr.data import karpathy, precomp
from itr.data.layouts import KINDS, SHARD_FOLDERS
from itr.data.lists import FOLDERS

SPLIT_NAMES = ("train", "restval", "val", "dev", "test", "testall")
LIST = re.compile(rf"(?P<name>.+)_(?P<split>{'|'.join(SPLIT_NAMES)})\.json")


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
        "lists": _lists,
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


def _lists(root: Path) -> Iterator[Found]:
    for folder in (*FOLDERS, "albef"):
        names: dict[str, list[str]] = {}
        for path in sorted((root / folder).glob("*.json")):
            if match := LIST.fullmatch(path.name):
                if match["name"] != "captions" and not path.name.startswith(karpathy.PREFIX):
                    names.setdefault(match["name"], []).append(match["split"])
        for name, splits in names.items():
            yield Found("lists", root / folder, name, _ordered(splits))


def _shards(root: Path) -> Iterator[Found]:
    for folder in SHARD_FOLDERS:
        if any((root / folder).glob("*.tar")):
            yield Found("shards", root / folder, root.name, ("train",))


def _ordered(splits: list[str]) -> tuple[str, ...]:
    known = {name: place for place, name in enumerate(SPLIT_NAMES)}
    return tuple(sorted(set(splits), key=lambda s: (known.get(s, len(known)), s)))
