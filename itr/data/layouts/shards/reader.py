"""Reader for WebDataset shards: tars with members ``key.jpg``, ``key.txt``, ``key.json``.

``.txt`` is the caption; a key of the ``.json`` is the synthetic caption. Each tar is indexed once
and the index is cached. Training then reads images by byte range, as for any other layout.
Unusable samples are left out, counted and reported.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.layout import LayoutSpec, data_root
from itr.data.layouts.shards.build_index import index_shards
from itr.data.layouts.shards.damage import ShardDamage
from itr.data.layouts.shards.find_tars import SplitTars, first_folder, tars_below, tars_of
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import Split
from itr.data.splits import ROLES, held_out_count, held_out_roles, resolve_split, role_of
from itr.errors import ConfigError

FOLDERS = ("", "wds", "shards")  # below data.root
LAYOUT = LayoutSpec("shards", "pixels", 6, "tar shards", second=True)


@dataclass(frozen=True)
class ShardsLayout:
    """The tars of a dataset, by split: named after splits, in such folders, or all train."""

    path: Path
    tars: dict[str, list[Path]]
    second_key: str = "synthetic_caption"
    held_out: float | str | None = 0
    max_broken: float = 0.01
    cache: str | Path | None = None
    decoder: str = "torchvision"
    needs_second: bool = True  # leave out samples without a second text if others have one
    notes: tuple[str, ...] = field(default=())
    name: str = "shards"
    kind: str = "pixels"

    def splits(self) -> list[str]:
        """The splits that have tars or are held out."""
        return [*self.tars, *self._held_out]

    @property
    def _held_out(self) -> list[str]:
        return held_out_roles(self.tars, self.held_out)

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
        roles = self._held_out
        if roles and key in ("train", *roles):
            # Before samples are left out, so that val and test never change.
            span = _held_out_span(key, len(samples), self.held_out, roles, str(self.path))
            if key == "train":
                count = f"{(len(samples) - span.stop) // len(roles)} of {len(samples)} samples"
                missing_roles = " and ".join(roles)
                notes.append(
                    f"{self.path}: no {missing_roles}: {count} of train are held out for each "
                    "(data.held_out)"
                )
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
        return resolve_split(split, self.splits(), str(self.path), self._advice(split))

    def _advice(self, split: str) -> str:
        if role_of(split) not in ROLES[1:]:
            return ""
        return (
            ", data.held_out=1000 to hold out the last 1000 samples of train for each missing "
            "split, or 'data.shards={train: ..., val: ..., test: ...}' to name the tars of each"
        )

    def paths(self, split: str) -> list[Path]:
        """The tars that hold ``split``; those of train if it is held out of them."""
        key = self._resolve(split)
        return self.tars[key if key in self.tars else "train"]


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
    path: Path
    found: SplitTars | None
    if data.shards is not None:
        path, found = first_folder(data.shards), tars_of(data.shards)
    else:
        folders = [data_root(data) / name for name in FOLDERS]
        existing = (folder for folder in folders if folder.is_dir())
        places = ((folder, tars_below(folder)) for folder in existing)
        path, found = next(((p, tars) for p, tars in places if tars.by_role), (folders[0], None))
    if found is None:
        return None
    options: dict[str, Any] = {
        key: getattr(data, key)
        for key in ("second_key", "held_out", "max_broken", "cache", "decoder")
    }
    return ShardsLayout(path, found.by_role, **options, notes=found.notes)


def _held_out_span(
    split: str, total: int, held_out: float | str | None, roles: Sequence[str], source: str
) -> slice:
    """Samples of ``split``: those of ``roles`` are the last ones, in their order."""
    size = held_out_count(held_out, total, roles, source)
    ends = {"train": total - size * len(roles)}
    for role in roles:
        ends[role] = list(ends.values())[-1] + size
    return slice(0 if split == "train" else ends[split] - size, ends[split])


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
