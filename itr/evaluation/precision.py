"""mAP@R and R-Precision by counting (Musgrave et al., ECCV 2020; used by ECCV Caption).

Q queries, M candidates, P positives, R positives of one query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from itr.errors import ConfigError, DataError
from itr.evaluation.ground_truths import Asked
from itr.evaluation.ranks import TIES

ScoresOf = Callable[[Tensor], Tensor]  # numbers [T] of queries -> their scores [T, M]


def precision_metrics(
    ranks: np.ndarray, place: np.ndarray, found: Asked, depth: int | None = None
) -> dict[str, float]:
    """``map_at_r``, ``rprecision`` and ``r1`` in per cent, over the queries of ``found``, from what
    `positive_ranks` gave.

    Where only ``depth`` candidates of a query were ordered and one has more positives than that,
    without the first two: they look at the R best.
    """
    count = found.known  # R of each query, as eccv-caption counts it
    inside = ranks <= count[found.rows]
    metrics: dict[str, float] = {}
    if depth is None or count.max() <= depth:
        precision = np.bincount(found.rows, np.where(inside, place / ranks, 0.0), len(count))
        metrics["map_at_r"] = 100.0 * float(np.mean(precision / count))
        share = np.bincount(found.rows, inside, len(count)) / count
        metrics["rprecision"] = 100.0 * float(np.mean(share))
    return {**metrics, "r1": 100.0 * float(np.mean(ranks[place == 1] <= 1))}


def positive_ranks(
    scores_of: ScoresOf, found: Asked, height: int, ties: str = "pessimistic"
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks [P] of the positives of each query of ``found``, best first, and their places 1 to R
    among them.

    At most ``height`` rows of scores exist at a time. Positives rank in any order among equals; an
    equal score of a non-match counts as ``ties`` says. Raises ConfigError for an unknown rule,
    DataError for scores that are NaN.
    """
    if ties not in TIES:
        raise ConfigError(f"ties: '{ties}' is unknown; expected one of {', '.join(TIES)}")
    rows = found.rows
    own, above, equal = _counts(scores_of, found, height)
    order = np.lexsort((-own, rows))
    own, above, equal = own[order], above[order], equal[order]
    number = np.arange(len(rows))
    group = np.searchsorted(rows, rows)  # where the query's positives begin
    new = np.r_[True, (rows[1:] != rows[:-1]) | (own[1:] != own[:-1])]
    run = np.maximum.accumulate(np.where(new, number, 0))  # where the equal ones begin
    ends = np.r_[np.flatnonzero(new)[1:], len(rows)]
    run_end = ends[np.cumsum(new) - 1]
    place = number - group + 1
    better = above - (run - group)  # non-matches that score more
    tied = equal - (run_end - run)  # non-matches that score the same
    share = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}[ties]
    return place + better + share * tied, place


def _counts(
    scores_of: ScoresOf, found: Asked, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each positive's score, how many candidates score more, and how many the same (itself too)."""
    own, above, equal = [], [], []
    queries, rows = torch.from_numpy(found.queries), found.rows
    with torch.inference_mode():
        for start in range(0, len(queries), height):
            first, last = np.searchsorted(rows, [start, start + height])
            scores = scores_of(queries[start : start + height])
            if scores.amax(dim=1).isnan().any():
                raise DataError("scores are NaN: the model has diverged or its input is broken")
            for low in range(first, last, height):
                chosen = slice(low, min(low + height, last))
                row = torch.from_numpy(rows[chosen] - start).to(scores.device)
                column = torch.from_numpy(found.columns[chosen]).to(scores.device)
                mine, theirs = scores[row, column], scores[row]
                own.append(mine)
                above.append((theirs > mine[:, None]).sum(dim=1))
                equal.append((theirs == mine[:, None]).sum(dim=1))
    return tuple(torch.cat(part).cpu().numpy() for part in (own, above, equal))  # type: ignore
