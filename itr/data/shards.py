"""Reader of WebDataset shards: tars whose members ``key.jpg``, ``key.txt``, ``key.json`` follow.

``.txt`` is the raw text, a key of ``.json`` the synthetic caption. Each tar is listed once, and the
list is kept; training then reads pictures by their place in the tar, as from any other layout.
Samples that cannot be used are left out, counted and reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from itr.data.options import DataConfig
from itr.data.places import ALIASES, root_of
from itr.data.records import Split
from itr.data.samples import Samples
from itr.data.shard_lists import ShardList, list_shard
from itr.errors import ConfigError, DataError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {00000..01505}: the width counts
FOLDERS = ("", "wds", "shards")  # below data.root
ROLES = ("train", "val", "test")
SHOWN = 3  # faults named in a message


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
        paths = self.tars[name if name in self.tars else "train"]
        lists = self.lists(paths)
        notes = report(paths, lists, self.max_broken, self.second_key)
        samples = Samples.of(paths, lists)
        total = len(samples)
        if any(shard.has_second.any() for shard in lists):
            samples = samples.only(samples.second.lengths > 0)
        if self._holds_out:
            samples = samples.part(_part(name, len(samples), self.held_out, str(self.path)))
        second = samples.second if len(samples) and samples.second.lengths.all() else None
        return Split(
            name,
            self.layout,
            samples,
            second=second,
            may_break=int(self.max_broken * total),
            decoder=self.decoder,
            source=str(paths[0] if len(paths) == 1 else paths[0].parent),
            notes=(*self.notes, *notes),
        )

    def lists(self, paths: Sequence[Path]) -> list[ShardList]:
        """The list of each of ``paths``; shows progress where there are many."""
        quiet = not Console().is_terminal or len(paths) < 9
        shown = track(paths, "listing shards", transient=True, disable=quiet)
        return [list_shard(path, self.second_key, self.cache) for path in shown]


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


def report(
    paths: Sequence[Path], lists: Sequence[ShardList], max_broken: float, second_key: str
) -> tuple[str, ...]:
    """What to log of what is left out; raises DataError if that is too much.

    Where some samples have a second text, one without is broken.
    """
    reasons: Counter[str] = Counter()
    named: dict[str, str] = {}
    for path, shard in zip(paths, lists, strict=True):
        reasons.update(shard.broken)
        for reason, key in shard.examples.items():
            named.setdefault(reason, f"{path.name}: {key}")
    having = [int(shard.has_second.sum()) for shard in lists]
    usable = sum(map(len, lists))
    if 0 < sum(having) < usable:
        reasons[f"no {second_key}"] = usable - sum(having)
        usable = sum(having)
    faults = [f"{p}: {s.fault}" for p, s in zip(paths, lists, strict=True) if s.fault]
    typical = int(np.median([len(shard) for shard in lists if not shard.fault] or [0]))
    lost = sum(max(0, typical - len(shard)) for shard in lists if shard.fault)
    broken = sum(reasons.values())
    listed = [
        f"{count} with {reason}" + (f" (such as {named[reason]})" if reason in named else "")
        for reason, count in reasons.most_common()
    ]
    share = (broken + lost) / max(1, usable + broken + lost)
    if not usable or share > max_broken:
        parts = [f"{broken} broken samples ({'; '.join(listed[:SHOWN])})"] if listed else []
        if faults:
            parts.append(
                f"about {lost} lost in {len(faults)} damaged tars ({'; '.join(faults[:SHOWN])})"
            )
        raise DataError(
            f"{paths[0].parent}: {' and '.join(parts) or 'no sample'} beside {usable} usable ones; "
            f"that is more than data.max_broken={max_broken} allows. Repair or remove them, or "
            "type a larger data.max_broken"
        )
    notes = [f"left out: {', '.join(listed)}"] if listed else []
    return (*notes, *(f"{fault}; what follows in it is not read" for fault in faults))
