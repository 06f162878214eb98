"""What of the tars of a data set cannot be used, and whether that is too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from itr.data.layouts.shards.index import ShardList
from itr.data.layouts.shards.tar import CLOSING
from itr.errors import DataError

SHOWN = 3  # faults named in a message


@dataclass
class Losses:
    """Samples that were left out, and about how many are missing in damaged tars."""

    where: Path
    usable: int
    reasons: Counter[str] = field(default_factory=Counter)  # -> samples left out
    named: dict[str, str] = field(default_factory=dict)  # reason -> the first of them
    faults: list[str] = field(default_factory=list)  # of tars
    lost: int = 0
    sound: bool = True  # there are tars without a fault, which tell how much a tar holds

    @classmethod
    def of(cls, paths: Sequence[Path], lists: Sequence[ShardList]) -> Losses:
        """Those of the tars ``paths``.

        A damaged tar lacks what the typical sound one has more, or what its unread bytes would
        hold: whichever is more, for a tar that was cut has no bytes left to go by.
        """
        own = cls(paths[0].parent, sum(map(len, lists)))
        for path, shard in zip(paths, lists, strict=True):
            own.reasons.update(shard.broken)
            for reason, key in shard.examples.items():
                own.named.setdefault(reason, f"{path.name}: {key}")
        damaged = [shard for shard in lists if shard.fault]
        own.faults = [f"{p}: {s.fault}" for p, s in zip(paths, lists, strict=True) if s.fault]
        sound = [len(shard) for shard in lists if not shard.fault]
        own.sound = bool(sound) or not damaged
        typical = int(np.median(sound)) if sound else 0
        steps = [np.diff(shard.images[:, 0]) for shard in lists]  # from sample to sample
        size = float(np.median(np.concatenate(steps))) if any(map(len, steps)) else np.inf
        for shard in damaged:
            unread = max(0, shard.unread - CLOSING)
            own.lost += max(0, typical - len(shard), int(unread / max(1, size)))
        return own

    def notes(self, max_broken: float, missing: int, second_key: str) -> tuple[str, ...]:
        """What to log. ``missing``: samples that have no second text, where one is needed.

        Raises DataError if more than the share ``max_broken`` is lost, or nothing is left; and
        where no tar is sound, for then nobody knows how much that is.
        """
        reasons, usable = Counter(self.reasons), self.usable - missing
        reasons[f"no {second_key}"] += missing
        reasons += Counter()  # drops what is 0
        broken = sum(reasons.values())
        listed = [
            f"{count} with {reason}"
            + (f" (such as {self.named[reason]})" if reason in self.named else "")
            for reason, count in reasons.most_common()
        ]
        share = (broken + self.lost) / max(1, usable + broken + self.lost)
        unknown = not self.sound and max_broken < 1
        if not usable or share > max_broken or unknown:
            parts = [f"{broken} broken samples ({'; '.join(listed[:SHOWN])})"] if listed else []
            if self.faults:
                lost = f"about {self.lost}" if self.sound else "nobody knows how many samples"
                faults = "; ".join(self.faults[:SHOWN])
                parts.append(f"{lost} lost in {len(self.faults)} damaged tars ({faults})")
            told = f"{self.where}: {' and '.join(parts) or 'no sample'} beside {usable} usable ones"
            if unknown and share <= max_broken and usable:
                raise DataError(
                    f"{told}; no tar is whole. Repair or remove them, or type data.max_broken=1 to "
                    "train on what can be read"
                )
            raise DataError(
                f"{told}; that is more than data.max_broken={max_broken} allows. Repair or remove "
                "them, or type a larger data.max_broken"
            )
        notes = [f"left out: {', '.join(listed)}"] if listed else []
        return (*notes, *(f"{fault}; what follows in it is not read" for fault in self.faults))
