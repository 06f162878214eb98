"""Computes mAP@R and R-Precision (Musgrave et al., ECCV 2020; used by ECCV Caption) by counting.

Q queries, M candidates, P positives, R positives of one query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from itr.errors import DataError
from itr.evaluation.ground_truths import QueryPositives
from itr.evaluation.ranks import check_tie_break

ScoresOf = Callable[[Tensor], Tensor]  # indices [T] of queries -> their scores [T, M]


def map_at_r_metrics(
    ranks: np.ndarray, order: np.ndarray, positives: QueryPositives, depth: int | None = None
) -> dict[str, float]:
    """``map_at_r``, ``rprecision`` and ``r1`` in per cent, from the output of `positive_ranks`.

    If only ``depth`` candidates of a query were ordered and a query has more positives than that,
    ``map_at_r`` and ``rprecision`` are undefined and omitted.
    """
    count = positives.n_positives  # R of each query, as eccv-caption counts it
    within_r = ranks <= count[positives.rows]
    metrics: dict[str, float] = {}
    if depth is None or count.max() <= depth:
        precision_at = np.where(within_r, order / ranks, 0.0)
        precision = np.bincount(positives.rows, precision_at, len(count))
        metrics["map_at_r"] = 100.0 * float(np.mean(precision / count))
        share = np.bincount(positives.rows, within_r, len(count)) / count
        metrics["rprecision"] = 100.0 * float(np.mean(share))
    return {**metrics, "r1": 100.0 * float(np.mean(ranks[order == 1] <= 1))}


def positive_ranks(
    scores_of: ScoresOf,
    positives: QueryPositives,
    tile_rows: int,
    tie_break: str = "pessimistic",
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks [P] of the positives of each query, best first, and their order [P] (1 to R) among
    the positives of the same query.

    At most ``tile_rows`` rows of scores exist at a time. Positives with equal scores rank in any
    order. A non-match with an equal score counts as ``tie_break`` says. Raises ConfigError for an
    unknown ``tie_break`` and DataError for NaN scores.
    """
    check_tie_break(tie_break)
    rows = positives.rows
    own, above, equal = _counts(scores_of, positives, tile_rows)
    by_score = np.lexsort((-own, rows))
    own, above, equal = own[by_score], above[by_score], equal[by_score]
    index = np.arange(len(rows))
    query_start = np.searchsorted(rows, rows)
    new = np.r_[True, (rows[1:] != rows[:-1]) | (own[1:] != own[:-1])]
    run = np.maximum.accumulate(np.where(new, index, 0))  # start of each run of equal scores
    ends = np.r_[np.flatnonzero(new)[1:], len(rows)]
    run_end = ends[np.cumsum(new) - 1]
    order = index - query_start + 1
    better = above - (run - query_start)  # non-matches with a higher score
    tied = equal - (run_end - run)  # non-matches with the same score
    share = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}[tie_break]
    return order + better + share * tied, order


def _counts(
    scores_of: ScoresOf, positives: QueryPositives, tile_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each positive [P]: its score, how many candidates score higher, and how many score the
    same (including the positive itself)."""
    own, above, equal = [], [], []
    queries, rows = torch.from_numpy(positives.queries), positives.rows
    with torch.inference_mode():
        for start in range(0, len(queries), tile_rows):
            first, last = np.searchsorted(rows, [start, start + tile_rows])
            scores = scores_of(queries[start : start + tile_rows])
            if scores.amax(dim=1).isnan().any():
                raise DataError("scores are NaN: the model has diverged or its input is broken")
            for low in range(first, last, tile_rows):
                chunk = slice(low, min(low + tile_rows, last))
                row = torch.from_numpy(rows[chunk] - start).to(scores.device)
                column = torch.from_numpy(positives.columns[chunk]).to(scores.device)
                mine, candidates = scores[row, column], scores[row]
                own.append(mine)
                above.append((candidates > mine[:, None]).sum(dim=1))
                equal.append((candidates == mine[:, None]).sum(dim=1))
    return tuple(torch.cat(each).cpu().numpy() for each in (own, above, equal))  # type: ignore
