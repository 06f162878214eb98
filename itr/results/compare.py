"""Compares two runs on the same queries with paired significance tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from itr.errors import DataError
from itr.evaluation.predictions import predictions_path, read_predictions
from itr.evaluation.query_log import QueryLog, query_log_path, read_queries
from itr.evaluation.ranks import Ranks
from itr.evaluation.statistics import PairedTest, compare_predictions, compare_ranks, holm
from itr.results.terminal_tables import plain_table

HEADINGS = {"rsum": "rSum", "i2t_rank": "i2t mean rank", "t2i_rank": "t2i mean rank"}
IDENTICAL = ("text_to_image", "image_ids", "caption_ids")


def compare(
    a: Path, b: Path, split: str = "test", protocol: str | None = None
) -> tuple[str, dict[str, PairedTest]]:
    """Test run ``b`` against run ``a``; returns the protocol and the tests by metric.

    ``protocol`` None: the first protocol of ``a``. Additional rows can be named as well, e.g.
    ``first_stage/coco_5k``. If one run has no dataset ids (score files and region arrays), both are
    assumed to be in the same order. Raises DataError if a run has no query log, if the two have
    different queries or candidates, or if one was not evaluated with ``protocol``.
    """
    if all(predictions_path(folder, split).is_file() for folder in (a, b)):
        items = read_predictions(a, split), read_predictions(b, split)
        return protocol or items[0].task, compare_predictions(*items)
    first, second = read_queries(a, split), read_queries(b, split)
    require_same_queries((first, second), (query_log_path(a, split), query_log_path(b, split)))
    known = [_comparable(log) for log in (first, second)]
    protocol = protocol or next(iter(known[0]))
    for folder, ranks in zip((a, b), known, strict=True):
        if protocol not in ranks:
            raise DataError(
                f"{folder}: not evaluated with protocol {protocol} (available: "
                f"{', '.join(ranks)}); pass --protocol NAME, or evaluate "
                f"again with protocol={protocol}"
            )
    return protocol, compare_ranks(known[0][protocol], known[1][protocol], first.text_to_image)


def require_same_queries(logs: tuple[QueryLog, QueryLog], names: tuple[Path, Path]) -> None:
    """Raise DataError, naming the files, unless both were made of the same images and captions."""
    first, second = logs
    numbered = any(_has_no_ids(log) for log in logs)
    for name in IDENTICAL[:1] if numbered else IDENTICAL:
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            raise DataError(
                f"{names[0]} and {names[1]}: different queries "
                f"({name}: {_summary(first, name)} and {_summary(second, name)}); a comparison "
                "needs the same images and captions: evaluate both on the same dataset and split"
            )


def _comparable(log: QueryLog) -> dict[str, Ranks]:
    """The image-text ranks of ``log`` by name."""
    return {name: r for name, r in log.all_ranks.items() if not name.endswith("/within")}


def _has_no_ids(log: QueryLog) -> bool:
    """Whether the images are only numbered, as for score files and region arrays."""
    return np.array_equal(log.image_ids, np.arange(len(log.image_ids)))


def _summary(log: QueryLog, name: str) -> str:
    values = getattr(log, name)
    return f"{len(values)}, starting with {values[:3].tolist()}"


def comparison_table(title: str, names: tuple[str, str], tests: dict[str, PairedTest]) -> Table:
    """One line per metric; p is two-sided, and the last column corrects for multiple tests."""
    table = plain_table(title)  # narrow enough for 80 columns
    for heading in ("", "A", "B", "B - A", "B wins", "B loses", "p", "Holm"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    adjusted = holm({name: pair.p for name, pair in tests.items()})
    for name, pair in tests.items():
        direction, _, k = name.partition("_r")
        table.add_row(
            HEADINGS.get(name, f"{direction} R@{k}" if k else name),
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
        "wins, losses: queries that only B, or only A, answers correctly (ranks: better, worse)\n"
        "p: sign-flip permutation over images with their texts; ranks: Wilcoxon\n"
        f"Holm: p corrected for all {len(tests)} tests; * below 0.05"
    )
    omitted = [heading for name, heading in HEADINGS.items() if name not in tests]
    if omitted and "rsum" in tests:
        table.caption += (
            f"\n{', '.join(omitted)}: omitted, some matches are not among the re-ranked candidates"
        )
    return table


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
