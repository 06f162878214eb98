"""Reader of WebDataset shards: tars whose members ``key.jpg``, ``key.txt``, ``key.json`` follow.

``.txt`` is the raw text, a key of ``.json`` the synthetic caption. Each tar is listed once, and the
list is kept; training then reads pictures by their place in the tar, as from any other layout.
Samples that cannot be used are left out, counted and reported.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from rich.console import Console
from rich.progress import track

from itr.data.records import Record, Slice, Split
from itr.data.shard_lists import ShardList, list_shard
from itr.data.strings import Strings
from itr.errors import ConfigError, DataError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {00000..01505}: the width counts
SHOWN = 3  # faults named in a message


def find_shards(pattern: str) -> list[Path]:
    """The tars that ``pattern`` names: a folder, a tar, or a path with ``{first..last}`` or ``*``.

    Raises DataError for none, or for members of a range that do not exist.
    """
    place = Path(pattern).expanduser()
    if place.is_dir():
        found = sorted(place.glob("*.tar"))
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


def read_split(
    paths: Sequence[Path],
    split: str,
    second_key: str = "synthetic_caption",
    held_out: int = 0,
    max_broken: float = 0.01,
    cache: str | Path | None = None,
) -> Split:
    """The split ``train``, ``val`` or ``test`` of the shards ``paths``; no picture is decoded.

    The last ``held_out`` samples are test, as many before them val. The lists of the tars are kept
    in ``cache``. Raises ConfigError for a split that there is not, DataError if more than the share
    ``max_broken`` of the samples is broken or none has a text.
    """
    shown = track(
        paths, "listing shards", transient=True, disable=not Console().is_terminal or len(paths) < 9
    )
    lists = [list_shard(path, second_key, cache) for path in shown]
    has_second = any(shard.has_second.any() for shard in lists)
    if has_second:
        lists = [_with_second(shard, second_key) for shard in lists]
    notes = _report(paths, lists, max_broken)
    samples = Samples(paths, lists)
    part = _part(split, len(samples), held_out, str(paths[0].parent))
    second = Strings.joined([shard.second for shard in lists])[part] if has_second else None
    return Split(
        split,
        "shards",
        samples.part(part),
        second=second,
        may_break=int(max_broken * len(samples)),
        source=str(paths[0] if len(paths) == 1 else paths[0].parent),
        notes=notes,
    )


def _with_second(shard: ShardList, second_key: str) -> ShardList:
    """Where samples have second texts, one without is broken."""
    lacking = int((~shard.has_second).sum())
    if not lacking:
        return shard
    kept = shard.only(shard.has_second)
    return dataclasses.replace(kept, broken={**kept.broken, f"no {second_key}": lacking})


def _part(split: str, total: int, held_out: int, source: str) -> slice:
    ends = {"train": (0, total - 2 * held_out)}
    if held_out:
        ends |= {
            "val": (total - 2 * held_out, total - held_out),
            "test": (total - held_out, total),
        }
    if split not in ends:
        raise ConfigError(
            f"{source}: shards hold training samples only, not '{split}'; type data.held_out=1000 "
            "to keep the last 1000 as test and as many before them as val"
        )
    first, last = ends[split]
    if first >= last:
        raise ConfigError(
            f"data.held_out={held_out}: val and test would take all {total} samples of {source}"
        )
    return slice(first, last)


def _report(
    paths: Sequence[Path], lists: Sequence[ShardList], max_broken: float
) -> tuple[str, ...]:
    """What to log of what was left out; raises DataError if that is too much."""
    usable = sum(map(len, lists))
    reasons: Counter[str] = Counter()
    for shard in lists:
        reasons.update(shard.broken)
    faults = [f"{p}: {s.fault}" for p, s in zip(paths, lists, strict=True) if s.fault]
    typical = int(np.median([len(shard) for shard in lists if not shard.fault] or [0]))
    lost = sum(max(0, typical - len(shard)) for shard in lists if shard.fault)
    broken = sum(reasons.values())
    listed = [f"{count} with {reason}" for reason, count in reasons.most_common()]
    share = (broken + lost) / max(1, usable + broken + lost)
    if not usable or share > max_broken:
        raise DataError(
            f"{paths[0].parent}: {broken} broken samples ({'; '.join(listed[:SHOWN]) or 'none'}) "
            f"and about {lost} lost in {len(faults)} damaged tars ({'; '.join(faults[:SHOWN])}) "
            f"beside {usable} usable ones; that is more than data.max_broken={max_broken}. Repair "
            "or remove them, or type a larger data.max_broken"
        )
    notes = [f"left out: {', '.join(listed)}"] if listed else []
    return (*notes, *(f"{fault}; what follows in it is not read" for fault in faults))


class Samples(Sequence[Record]):
    """The samples of all shards as records, made when they are asked for."""

    def __init__(self, paths: Sequence[Path], lists: Sequence[ShardList]):
        self.paths = [str(path) for path in paths]
        self.shards = np.repeat(np.arange(len(lists)), [len(shard) for shard in lists])
        self.images = np.concatenate([shard.images for shard in lists])
        self.ids = np.concatenate([shard.ids for shard in lists])
        self.texts = Strings.joined([shard.texts for shard in lists])
        self.first = 0

    def part(self, part: slice) -> Samples:
        """Some of the samples; their ids stay."""
        found = object.__new__(Samples)
        found.paths, found.shards, found.images = self.paths, self.shards[part], self.images[part]
        found.ids, found.texts = self.ids[part], self.texts[part]
        found.first = self.first + part.indices(len(self))[0]
        return found

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def caption_counts(self) -> np.ndarray:
        """Captions of each record: one."""
        return np.ones(len(self), np.int64)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Samples: ...
    def __getitem__(self, place: int | slice) -> Record | Samples:
        if isinstance(place, slice):
            return self.part(place)
        place = range(len(self))[place]  # raises IndexError, counts from the end
        offset, size = self.images[place].tolist()
        number = self.first + place
        return Record(
            image_id=int(self.ids[place]) if self.ids[place] >= 0 else number,
            image=Slice(self.paths[self.shards[place]], offset, size),
            captions=(self.texts[place],),
            caption_ids=(number,),
        )
