"""Reader for WebDataset shards: tars with members ``key.jpg``, ``key.txt``, ``key.json``.

``.txt`` is the caption; a key of the ``.json`` is the synthetic caption. Each tar is indexed once
and the index is cached. Training then reads images by byte range, as for any other layout.
Unusable samples are left out, counted and reported.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.layout import OTHER_NAMES, ROLES, LayoutSpec, data_root
from itr.data.layouts.shards.build_index import index_shards
from itr.data.layouts.shards.damage import ShardDamage
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import Split
from itr.errors import ConfigError, DataError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {00000..01505}; the number of digits matters
FOLDERS = ("", "wds", "shards")  # below data.root
LAYOUT = LayoutSpec("shards", "pixels", 6, "tar shards", second=True)


@dataclass(frozen=True)
class ShardsLayout:
    """The tars of a dataset, by split: in folders named after splits, or all for training."""

    path: Path
    tars: dict[str, list[Path]]
    second_key: str = "synthetic_caption"
    held_out: float = 0
    max_broken: float = 0.01
    cache: str | Path | None = None
    decoder: str = "torchvision"
    needs_second: bool = True  # leave out samples without a second text if others have one
    notes: tuple[str, ...] = field(default=())
    name: str = "shards"
    kind: str = "pixels"

    def splits(self) -> list[str]:
        """The splits that have tars or are held out."""
        return list(ROLES) if self._holds_out else list(self.tars)

    @property
    def _holds_out(self) -> bool:
        return bool(self.held_out) and list(self.tars) == ["train"]

    def read(self, split: str) -> Split:
        """Read one split. Decodes no image.

        Raises ConfigError for an unknown split, DataError if more than ``max_broken`` of the
        samples are unusable.
        """
        key = self._resolve(split)
        paths = self.paths(key)
        loaded = _load(paths, self.second_key, self.cache)
        samples, notes = loaded.samples, list(self.notes)
        missing = int((samples.second.lengths == 0).sum())
        some_missing = 0 < missing < len(samples)
        leave_out = some_missing and self.needs_second
        notes += loaded.damage.notes(self.max_broken, missing if leave_out else 0, self.second_key)
        if some_missing and not leave_out:
            notes.append(f"{missing} of {len(samples)} samples have no {self.second_key}")
        if self._holds_out:  # before samples are left out, so that val and test never change
            span = _held_out_span(key, len(samples), self.held_out, str(self.path))
            samples = samples.part(span, loaded)
        if leave_out:
            samples = samples.only(samples.second.lengths > 0)
        second = samples.second if len(samples) and samples.second.lengths.all() else None
        return Split(
            key,
            self.name,
            samples,
            second=second,
            broken_limit=int(self.max_broken * len(samples)),
            decoder=self.decoder,
            source=str(paths[0] if len(paths) == 1 else paths[0].parent),
            notes=tuple(notes),
        )

    def _resolve(self, split: str) -> str:
        key = split if split in self.splits() else OTHER_NAMES.get(split, split)
        if key in self.splits():
            return key
        if list(self.tars) == ["train"]:
            raise ConfigError(
                f"{self.path}: has training shards only, no split '{split}'; pass "
                "data.held_out=1000 to hold out the last 1000 samples as test and the 1000 before "
                "them as val"
            )
        raise ConfigError(
            f"{self.path}: no folder '{split}' of tars; its splits: {', '.join(self.tars)}"
        )

    def paths(self, split: str) -> list[Path]:
        """The tars that hold ``split``; those of train if it is held out of them."""
        return self.tars[split if split in self.tars else "train"]


@dataclass(eq=False)
class LoadedShards:
    """All samples of some tars, and their damage."""

    samples: ShardSamples
    damage: ShardDamage


# Splits that are held out of the same tars share their samples while one of them is in use.
_in_memory: weakref.WeakValueDictionary[Any, LoadedShards] = weakref.WeakValueDictionary()


def _load(paths: Sequence[Path], second_key: str, cache: str | Path | None) -> LoadedShards:
    """The samples of the tars ``paths``; read once as long as they are in use and unchanged."""
    stats = [path.stat() for path in paths if path.exists()]
    key = (tuple(paths), tuple((s.st_size, s.st_mtime_ns) for s in stats), second_key)
    loaded = _in_memory.get(key)
    if loaded is None:
        indexes = index_shards(paths, second_key, cache)
        samples, damage = ShardSamples.of(paths, indexes), ShardDamage.of(paths, indexes)
        loaded = _in_memory[key] = LoadedShards(samples, damage)
    return loaded


def find(data: DataConfig) -> ShardsLayout | None:
    """The shards that ``data.shards`` names, otherwise those below ``data.root``; None if none.

    Raises DataError if ``data.shards`` matches no tar.
    """
    tars: dict[str, list[Path]] = {}
    if data.shards is not None:
        path = Path(data.shards).expanduser()
        tars = _tars_by_split(path) or {"train": find_shards(data.shards)}
    else:
        folders = [data_root(data) / name for name in FOLDERS]
        path = next((f for f in folders if _tars_in(f) or _tars_by_split(f)), folders[0])
        tars = _tars_by_split(path) or ({"train": _tars_in(path)} if _tars_in(path) else {})
    if not tars:
        return None
    options: dict[str, Any] = {
        key: getattr(data, key)
        for key in ("second_key", "held_out", "max_broken", "cache", "decoder")
    }
    return ShardsLayout(path, tars, **options)


def _tars_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def _tars_by_split(folder: Path) -> dict[str, list[Path]]:
    """Tars in folders named train, val and test; empty without a folder train."""
    tars = {role: _tars_in(folder / role) for role in ROLES}
    return {role: paths for role, paths in tars.items() if paths} if tars["train"] else {}


def find_shards(pattern: str) -> list[Path]:
    """The tars that match ``pattern``: a folder, a tar, or a path with ``{first..last}`` or ``*``.

    Raises DataError if none matches, or if a file of a range does not exist.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        tars = _tars_in(path)
    elif match := RANGE.search(pattern):
        first, last = match.groups()
        before, after = pattern[: match.start()], pattern[match.end() :]
        numbers = range(int(first), int(last) + 1)
        tars = [Path(f"{before}{n:0{len(first)}d}{after}").expanduser() for n in numbers]
        if missing := [tar for tar in tars if not tar.is_file()]:
            raise DataError(
                f"data.shards={pattern}: {len(missing)} of {len(tars)} tars do not exist (first: "
                f"{missing[0]}); correct the range, or pass data.shards=DIR"
            )
    else:
        tars = sorted(path.parent.glob(path.name))
    if not tars:
        raise DataError(f"data.shards={pattern}: no .tar files there; pass data.shards=DIR")
    return tars


def _held_out_span(split: str, total: int, held_out: float, source: str) -> slice:
    """Samples of ``split``: the last ``held_out`` are test, as many before them val."""
    size = int(held_out) if held_out >= 1 else round(held_out * total)
    first, last = {
        "train": (0, total - 2 * size),
        "val": (total - 2 * size, total - size),
        "test": (total - size, total),
    }[split]
    if not 0 <= first < last:
        raise ConfigError(
            f"data.held_out={held_out:g}: val and test would take all {total} samples of "
            f"{source}; pass a smaller data.held_out"
        )
    return slice(first, last)


def require_enough_shards(count: int, world: int, workers: int, source: str) -> None:
    """Raise ConfigError if there are more readers than the ``count`` shards.

    Each reader needs a shard of its own; readers of one file would wait for each other.
    """
    readers = world * max(1, workers)
    if readers > count:
        raise ConfigError(
            f"{source}: {count} shards for {world} devices x {max(1, workers)} workers = "
            f"{readers} readers; pass runtime.num_workers={count // world if count >= world else 0}"
            + (f" devices={count}" if count < world else "")
            + ", or write more, smaller shards with itr data convert --shard-size"
        )
