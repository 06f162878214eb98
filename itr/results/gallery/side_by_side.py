"""Two runs side by side: the queries that one answers right and the other does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from itr.errors import DataError
from itr.evaluation.query_log import DIRECTIONS, QueryLog, query_log_path, read_queries
from itr.results.compare import require_same_queries
from itr.results.gallery.evaluated_run import EvaluatedRun
from itr.results.gallery.page import DIRECTION_NAMES, card, facts_of, templates
from itr.results.gallery.query_cases import case_of

TEMPLATE = "side_by_side.html.j2"
SHOWN = 3  # candidates of each run


def build_comparison(run: EvaluatedRun, other: Path, count: int = 8) -> str:
    """The page of ``run`` (A) against the run in the folder ``other`` (B) as an HTML string.

    ``count``: queries a section. Raises DataError if B was not evaluated on the same queries and
    under the same protocol.
    """
    logs = run.log, _log_of(run, other)
    names = run.folder.resolve().name, other.resolve().name
    if names[0] == names[1]:
        names = str(run.folder), str(other)
    counts, sections = [], []
    for direction in DIRECTIONS:
        first = [getattr(log.ranks[run.protocol], direction) for log in logs]
        right = [ranks == 1 for ranks in first]
        asked = np.isfinite(first[0]) & np.isfinite(first[1])
        cells = (right[0] & right[1], right[0] & ~right[1], right[1] & ~right[0])
        numbers = [int((cell & asked).sum()) for cell in cells]
        numbers.append(int(asked.sum()) - sum(numbers))
        counts.append({"name": DIRECTION_NAMES[direction], "cells": numbers})
        for winner, letter in enumerate("AB"):
            only = np.flatnonzero(cells[1 + winner] & asked)
            lost = first[1 - winner][only]
            chosen = only[np.argsort(-lost, kind="stable")][:count]
            sections.append(
                {
                    "id": f"{letter}-{direction}",
                    "title": f"Only {letter} is right, {DIRECTION_NAMES[direction]}",
                    "direction": direction,
                    "total": len(only),
                    "cases": [_case(run, logs, direction, int(query)) for query in chosen],
                }
            )
    page = templates().get_template(TEMPLATE)
    return page.render(
        names=names,
        facts=facts_of(run),
        counts=counts,
        sections=sections,
        missing=run.thumbnails.missing,
    )


def _log_of(run: EvaluatedRun, other: Path) -> QueryLog:
    log = read_queries(other, run.split_name)
    names = query_log_path(run.folder, run.split_name), query_log_path(other, run.split_name)
    require_same_queries((run.log, log), names)
    if run.protocol not in log.ranks:
        raise DataError(
            f"{other}: not evaluated with protocol {run.protocol} (available: "
            f"{', '.join(log.ranks)}); pass --protocol NAME, or evaluate again with "
            f"protocol={run.protocol}"
        )
    return log


def _case(
    run: EvaluatedRun, logs: Sequence[QueryLog], direction: str, query: int
) -> dict[str, Any]:
    """The query with the answers of both runs; its images and texts are those of ``run``."""
    answers = []
    for log in logs:
        rank = float(getattr(log.ranks[run.protocol], direction)[query])
        case = case_of(log, direction, query, rank)
        answers.append(card(run, replace(case, candidates=case.candidates[:SHOWN]), log))
    return {**answers[0], "answers": answers}
