"""Counts unusable samples and damaged tars, and decides whether they are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from itr.data.layouts.shards.index import ShardIndex
from itr.data.layouts.shards.tar import END_PADDING
from itr.errors import DataError, first_of


@dataclass
class ShardDamage:
    """Samples that are left out, and an estimate of those missing in damaged tars."""

    where: Path
    usable: int
    reasons: Counter[str] = field(default_factory=Counter)  # -> samples left out
    examples: dict[str, str] = field(default_factory=dict)  # reason -> first such sample
    faults: list[str] = field(default_factory=list)  # of tars
    lost: int = 0  # samples estimated to be missing in damaged tars
    can_estimate: bool = True  # there is an undamaged tar, which shows how many samples to expect

    @classmethod
    def of(cls, paths: Sequence[Path], indexes: Sequence[ShardIndex]) -> ShardDamage:
        """Collect the damage of the tars ``paths``.

        A damaged tar is assumed to lack the difference to the median undamaged tar, or what its
        unread bytes would hold, whichever is more: a tar that was cut has no unread bytes.
        """
        damage = cls(paths[0].parent, sum(map(len, indexes)))
        for path, index in zip(paths, indexes, strict=True):
            damage.reasons.update(index.broken)
            for reason, key in index.examples.items():
                damage.examples.setdefault(reason, f"{path.name}: {key}")
        damaged = [index for index in indexes if index.fault]
        damage.faults = [f"{p}: {i.fault}" for p, i in zip(paths, indexes, strict=True) if i.fault]
        sizes = [len(index) for index in indexes if not index.fault]
        damage.can_estimate = bool(sizes) or not damaged
        typical = int(np.median(sizes)) if sizes else 0
        steps = [np.diff(index.images[:, 0]) for index in indexes]  # bytes from sample to sample
        step = float(np.median(np.concatenate(steps))) if any(map(len, steps)) else np.inf
        for index in damaged:
            unread = max(0, index.unread - END_PADDING)
            damage.lost += max(0, typical - len(index), int(unread / max(1, step)))
        return damage

    def notes(self, max_broken: float, missing: int, second_key: str) -> tuple[str, ...]:
        """Log lines about the damage.

        Args:
            max_broken: the share of samples that may be lost (``data.max_broken``).
            missing: samples without a second text, if the model needs one.
            second_key: name of the second text.

        Raises DataError if more is lost, if nothing is left, or if the loss cannot be estimated
        because every tar is damaged.
        """
        reasons, usable = Counter(self.reasons), self.usable - missing
        reasons[f"no {second_key}"] += missing
        reasons += Counter()  # drops zero counts
        broken = sum(reasons.values())
        listed = [
            f"{count} with {reason}"
            + (f" (e.g. {self.examples[reason]})" if reason in self.examples else "")
            for reason, count in reasons.most_common()
        ]
        share = (broken + self.lost) / max(1, usable + broken + self.lost)
        unknown = not self.can_estimate and max_broken < 1
        if not usable or share > max_broken or unknown:
            summary = self._summary(broken, listed, usable)
            if unknown and share <= max_broken and usable:
                raise DataError(
                    f"{summary}; all tars are damaged. Repair or remove them, or pass "
                    "data.max_broken=1 to train on what can be read"
                )
            raise DataError(
                f"{summary}; that is more than data.max_broken={max_broken} allows. Repair or "
                "remove them, or pass a larger data.max_broken"
            )
        notes = [f"left out: {', '.join(listed)}"] if listed else []
        return (*notes, *(f"{fault}; the rest of this tar is not read" for fault in self.faults))

    def _summary(self, broken: int, listed: Sequence[str], usable: int) -> str:
        losses = []
        if listed:
            losses.append(f"{broken} unusable samples ({first_of(listed, separator='; ')})")
        if self.faults:
            lost = f"about {self.lost}" if self.can_estimate else "an unknown number of samples"
            faults = first_of(self.faults, separator="; ")
            losses.append(f"{lost} lost in {len(self.faults)} damaged tars ({faults})")
        return f"{self.where}: {' and '.join(losses) or 'no sample'}, {usable} usable samples"
