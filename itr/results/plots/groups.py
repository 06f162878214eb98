"""Rows of results that share a figure: one dataset, split and protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from itr.results.collect import ResultRow
from itr.results.plots.style import COLORS
from itr.tasks.columns import columns_of


@dataclass(frozen=True)
class Group:
    """Comparable rows."""

    data: str
    split: str
    protocol: str
    rows: tuple[ResultRow, ...]

    @property
    def main(self) -> str:
        """The metric by which rows are compared."""
        return columns_of(self.protocol).main

    @property
    def heading(self) -> str:
        """The name of the main metric in a figure."""
        return columns_of(self.protocol).heading(self.main)

    @property
    def slug(self) -> str:
        """Part of a file name."""
        return re.sub(r"[^\w-]+", "_", f"{self.data}_{self.split}_{self.protocol}")

    @property
    def title(self) -> str:
        """What was evaluated."""
        return f"{self.data}, {self.split} split, protocol {self.protocol}"


def groups_of(rows: Sequence[ResultRow]) -> list[Group]:
    """The groups of ``rows``, without rows beside the main result (first stages, members)."""
    found: dict[tuple[str, str, str], list[ResultRow]] = {}
    for row in rows:
        if not row.variant and row.mean(columns_of(row.protocol).main)[0] is not None:
            found.setdefault((row.data, row.split, row.protocol), []).append(row)
    return [Group(*key, tuple(members)) for key, members in sorted(found.items())]


def best_rows(group: Group, most: int = len(COLORS)) -> tuple[list[ResultRow], str]:
    """At most ``most`` rows with the best results, and a sentence on what is left out."""
    ordered = sorted(group.rows, key=lambda row: -(row.mean(group.main)[0] or 0.0))
    left = len(ordered) - most
    return ordered[:most], f" The best {most} of {len(ordered)} are shown." if left > 0 else ""


def facts(rows: Sequence[ResultRow]) -> str:
    """Selection rule, seeds and tie rule of the rows, for a caption."""
    counts = sorted({len(row.runs) for row in rows})
    seeds = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    rules = sorted({str(row.fact("select_on") or "unknown") for row in rows})
    ties = sorted({str(row.fact("tie_break")) for row in rows if row.fact("tie_break")})
    text = f"Seeds: {seeds}; checkpoint selected on: {', '.join(rules)}"
    return f"{text}; ties: {', '.join(ties)}." if ties else f"{text}."
