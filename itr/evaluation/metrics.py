"""Computes R@K, median and mean rank, and rSum from ranks."""

from __future__ import annotations

import numpy as np

from itr.evaluation.ranks import Ranks

RECALLS = (1, 5, 10)  # the K of R@K


def rank_metrics(ranks: np.ndarray, depth: int | None = None) -> dict[str, float]:
    """``r1 r5 r10 medr meanr`` of the ranks [Q] of one direction.

    R@K is the percentage of queries with a rank of at most K. The median is rounded down as in
    SCAN's evaluation code, whose ranks start at 0. If only ``depth`` candidates of a query were
    ordered, a rank above ``depth`` is unknown, and metrics that depend on it are omitted.
    """
    metrics: dict[str, float] = {}
    ranks = ranks[~np.isnan(ranks)]  # NaN: no query
    for k in RECALLS:
        if depth is None or k <= depth:
            metrics[f"r{k}"] = 100.0 * int(np.count_nonzero(ranks <= k)) / len(ranks)
    if depth is None:
        metrics["medr"] = float(np.floor(np.median(ranks - 1)) + 1)
        metrics["meanr"] = float(np.mean(ranks))
    return metrics


def sums(metrics: dict[str, float]) -> dict[str, float]:
    """``rsum``, the sum of the six R@K, and their mean ``rmean``; empty if one is missing."""
    keys = [f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in RECALLS]
    if any(key not in metrics for key in keys):
        return {}
    total = sum(metrics[key] for key in keys)
    return {"rsum": total, "rmean": total / len(keys)}


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """``i2t_r1 i2t_r5 i2t_r10 i2t_medr i2t_meanr``, the same for ``t2i``, ``rsum`` and ``rmean``.

    If re-ranking ordered only ``ranks.depth`` of the candidates, R@K beyond that depth and the
    median and mean rank are omitted.
    """
    metrics: dict[str, float] = {}
    n_candidates = {"i2t": len(ranks.t2i), "t2i": len(ranks.i2t)}
    for direction, values in (("i2t", ranks.i2t), ("t2i", ranks.t2i)):
        partial = ranks.depth is not None and ranks.depth < n_candidates[direction]
        for key, value in rank_metrics(values, ranks.depth if partial else None).items():
            metrics[f"{direction}_{key}"] = value
    return {**metrics, **sums(metrics)}
