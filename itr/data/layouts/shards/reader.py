"""Reader of WebDataset shards: tars whose members ``key.jpg``, ``key.txt``, ``key.json`` follow.

``.txt`` is the raw text, a key of ``.json`` the synthetic caption. Each tar is listed once, and the
list is kept; training then reads pictures by their place in the tar, as from any other layout.
Samples that cannot be used are left out, counted and reported.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.layout import ALIASES, root_of
from itr.data.layouts.shards.build_index import list_shards
from itr.data.layouts.shards.damage import Losses
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import Split
from itr.errors import ConfigError, DataError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {00000..01505}: the width counts
FOLDERS = ("", "wds", "shards")  # below data.root
ROLES = ("train", "val", "test")


@dataclass(frozen=True)
class Shards:
    """The tars of a data set, by split: in folders of that name, or all of them training's."""

    path: Path
    tars: dict[str, list[Path]]
    second_key: str = "synthetic_caption"
    held_out: float = 0
    max_broken: float = 0.01
    cache: str | Path | None = None
    decoder: str = "torchvision"
    wants_second: bool = True  # samples without a second text are broken where others have one
    notes: tuple[str, ...] = field(default=())
    layout: str = "shards"
    holds: str = "pixels"

    def splits(self) -> list[str]:
        """Those that have tars, and what is held out."""
        return list(ROLES) if self._holds_out else list(self.tars)

    @property
    def _holds_out(self) -> bool:
        return bool(self.held_out) and list(self.tars) == ["train"]

    def read(self, split: str) -> Split:
        """One split; no picture is decoded.

        Raises ConfigError for a split that there is not, DataError if more than ``max_broken`` of
        the samples is broken.
        """
        name = split if split in self.splits() else ALIASES.get(split, split)
        if name not in self.splits():
            raise ConfigError(
                f"{self.path}: shards hold training samples only, not '{split}'; type "
                "data.held_out=1000 to keep the last 1000 as test and as many before them as val"
                if list(self.tars) == ["train"]
                else f"{self.path}: has no folder '{split}' of tars, only {', '.join(self.tars)}"
            )
        paths = self.paths(name)
        whole = _opened(paths, self.second_key, self.cache)
        samples, notes = whole.samples, list(self.notes)
        missing = int((samples.second.lengths == 0).sum())
        partly = 0 < missing < len(samples)
        wanting = partly and self.wants_second
        notes += whole.losses.notes(self.max_broken, missing if wanting else 0, self.second_key)
        if partly and not wanting:
            notes.append(f"{missing} of {len(samples)} samples have no {self.second_key}")
        if self._holds_out:  # before any is left out: val and test stay the same
            part = _part(name, len(samples), self.held_out, str(self.path))
            samples = samples.part(part, whole)
        if wanting:
            samples = samples.only(samples.second.lengths > 0)
        second = samples.second if len(samples) and samples.second.lengths.all() else None
        return Split(
            name,
            self.layout,
            samples,
            second=second,
            broken_limit=int(self.max_broken * len(samples)),
            decoder=self.decoder,
            source=str(paths[0] if len(paths) == 1 else paths[0].parent),
            notes=tuple(notes),
        )

    def paths(self, split: str) -> list[Path]:
        """The tars that hold ``split``; those of training where it is cut out of them."""
        return self.tars[split if split in self.tars else "train"]


@dataclass(eq=False)
class Whole:
    """All samples of some tars, and what they lack."""

    samples: ShardSamples
    losses: Losses


# While training holds its part of them, those of evaluation are cut out of the same samples.
_in_memory: weakref.WeakValueDictionary[Any, Whole] = weakref.WeakValueDictionary()


def _opened(paths: Sequence[Path], second_key: str, cache: str | Path | None) -> Whole:
    """What the tars ``paths`` hold as they are now; read once as long as somebody uses it."""
    stats = [path.stat() for path in paths if path.exists()]
    key = (tuple(paths), tuple((s.st_size, s.st_mtime_ns) for s in stats), second_key)
    found = _in_memory.get(key)
    if found is None:
        lists = list_shards(paths, second_key, cache)
        found = _in_memory[key] = Whole(ShardSamples.of(paths, lists), Losses.of(paths, lists))
    return found


def find(data: DataConfig) -> Shards | None:
    """The shards that ``data.shards`` names, or those below ``data.root``; None: there are none.

    Raises DataError if ``data.shards`` names none.
    """
    tars: dict[str, list[Path]] = {}
    if data.shards is not None:
        place = Path(data.shards).expanduser()
        tars = _by_split(place) or {"train": find_shards(data.shards)}
    else:
        folders = [root_of(data) / name for name in FOLDERS]
        place = next((f for f in folders if _tars(f) or _by_split(f)), folders[0])
        tars = _by_split(place) or ({"train": _tars(place)} if _tars(place) else {})
    if not tars:
        return None
    options: dict[str, Any] = {
        key: getattr(data, key)
        for key in ("second_key", "held_out", "max_broken", "cache", "decoder")
    }
    return Shards(place, tars, **options)


def _tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Tars in folders called train, val and test; none where there is no such train."""
    found = {role: _tars(folder / role) for role in ROLES}
    return {role: tars for role, tars in found.items() if tars} if found["train"] else {}


def find_shards(pattern: str) -> list[Path]:
    """The tars that ``pattern`` names: a folder, a tar, or a path with ``{first..last}`` or ``*``.

    Raises DataError for none, or for members of a range that do not exist.
    """
    place = Path(pattern).expanduser()
    if place.is_dir():
        found = _tars(place)
    elif match := RANGE.search(pattern):
        first, last = match.groups()
        before, after = pattern[: match.start()], pattern[match.end() :]
        numbers = range(int(first), int(last) + 1)
        found = [Path(f"{before}{n:0{len(first)}d}{after}").expanduser() for n in numbers]
        if missing := [path for path in found if not path.is_file()]:
            raise DataError(
                f"data.shards={pattern}: {len(missing)} of {len(found)} tars do not exist; the "
                f"first is {missing[0]}"
            )
    else:
        found = sorted(place.parent.glob(place.name))
    if not found:
        raise DataError(f"data.shards={pattern}: no .tar there; type data.shards=DIR")
    return found


def _part(split: str, total: int, held_out: float, source: str) -> slice:
    """The last ``held_out`` samples are test, as many before them val."""
    size = int(held_out) if held_out >= 1 else round(held_out * total)
    first, last = {
        "train": (0, total - 2 * size),
        "val": (total - 2 * size, total - size),
        "test": (total - size, total),
    }[split]
    if not 0 <= first < last:
        raise ConfigError(
            f"data.held_out={held_out:g}: val and test would take all {total} samples of {source}"
        )
    return slice(first, last)


def require_enough_shards(count: int, world: int, workers: int, source: str) -> None:
    """Raise ConfigError where readers outnumber ``count`` shards: they would wait for one file."""
    readers = world * max(1, workers)
    if readers > count:
        raise ConfigError(
            f"{source}: {count} shards for {world} devices x {max(1, workers)} workers = "
            f"{readers} readers; type runtime.num_workers={count // world if count >= world else 0}"
            + (f" devices={count}" if count < world else "")
            + ", or write more, smaller shards: itr data convert --help"
        )
