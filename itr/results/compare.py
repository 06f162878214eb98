"""Two runs on the same queries: is the difference more than chance?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from itr.errors import DataError
from itr.evaluation.query_log import QueryLog, query_log_path, read_queries
from itr.evaluation.ranks import Ranks
from itr.evaluation.statistics import PairedTest, compare_ranks, holm

HEADINGS = {"rsum": "rSum", "i2t_rank": "i2t mean rank", "t2i_rank": "t2i mean rank"}
ALIKE = ("text_to_image", "image_ids", "caption_ids")


def compare(
    a: Path, b: Path, split: str = "test", protocol: str | None = None
) -> tuple[str, dict[str, PairedTest]]:
    """(protocol, metrics) of run ``b`` against run ``a``; protocol None: the first of ``a``. A row
    beside the result goes by its name, too (``first_stage/coco_5k``).

    Raises DataError where a run left no queries behind, where the two were not asked the same
    queries against the same candidates, or for a protocol that one of them lacks. Where one knows
    images by their place alone, both are taken to be in the same order.
    """
    first, second = read_queries(a, split), read_queries(b, split)
    numbered = any(_numbered(log) for log in (first, second))
    for name in ALIKE[:1] if numbered else ALIKE:
        here, there = getattr(first, name), getattr(second, name)
        if not np.array_equal(here, there):
            raise DataError(
                f"{query_log_path(a, split)} and {query_log_path(b, split)}: different queries "
                f"({name}: {_told(first, name)} and {_told(second, name)}); a paired test needs "
                "the same images and captions: evaluate both on one data set and split"
            )
    known = [_comparable(log) for log in (first, second)]
    protocol = protocol or next(iter(known[0]))
    for folder, ranks in zip((a, b), known, strict=True):
        if protocol not in ranks:
            raise DataError(
                f"{folder}: was not evaluated as {protocol} (but as {', '.join(ranks)}); type "
                f"--protocol NAME, or evaluate again with protocol={protocol}"
            )
    return protocol, compare_ranks(known[0][protocol], known[1][protocol], first.text_to_image)


def _comparable(log: QueryLog) -> dict[str, Ranks]:
    """Ranks of images among captions and of captions among images."""
    return {name: r for name, r in log.all_ranks.items() if not name.endswith("/within")}


def _numbered(log: QueryLog) -> bool:
    """Whether the images have no ids but their place: of score files and region arrays."""
    return np.array_equal(log.image_ids, np.arange(len(log.image_ids)))


def _told(log: QueryLog, name: str) -> str:
    values = getattr(log, name)
    return f"{len(values)}, beginning {values[:3].tolist()}"


def comparison_table(title: str, names: tuple[str, str], found: dict[str, PairedTest]) -> Table:
    """A line for each metric. p is two-sided; the last column allows for all tests together."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "A", "B", "B - A", "B wins", "B loses", "p", "Holm"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    adjusted = holm({name: pair.p for name, pair in found.items()})
    for name, pair in found.items():
        way, _, k = name.partition("_r")
        table.add_row(
            HEADINGS.get(name, f"{way} R@{k}"),
            f"{pair.a:.2f}",
            f"{pair.b:.2f}",
            f"{pair.difference:+.2f}",
            str(pair.wins),
            str(pair.losses),
            _p(pair.p),
            f"{_p(adjusted[name])}{' *' if adjusted[name] < 0.05 else ''}",
        )
    table.caption = (
        f"A: {names[0]}\nB: {names[1]}\n"
        "wins, losses: queries that only B, only A gets right (ranks: that are better, worse)\n"
        "p: sign-flip permutation over images with their captions; ranks: Wilcoxon\n"
        f"Holm: p allowing for all {len(found)} tests; * below 0.05"
    )
    lacking = [heading for name, heading in HEADINGS.items() if name not in found]
    if lacking:
        table.caption += (
            f"\n{', '.join(lacking)}: not given, a match lies behind the re-ranked candidates"
        )
    return table


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
