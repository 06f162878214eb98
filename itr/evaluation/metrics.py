"""Ranks to the field's numbers: recall at K in per cent, median and mean rank, rSum."""

from __future__ import annotations

import numpy as np

from itr.evaluation.ranks import Ranks

RECALLS = (1, 5, 10)


def rank_metrics(ranks: np.ndarray, depth: int | None = None) -> dict[str, float]:
    """``r1 r5 r10 medr meanr`` of the ranks [Q] of one direction.

    Recalls are per cent of the queries whose rank is at most K. The median is rounded down as
    SCAN's evaluation does, whose ranks count from 0. Where only ``depth`` candidates of a query
    were ordered, a rank above it is no number: what depends on such ranks is not given.
    """
    metrics: dict[str, float] = {}
    for k in RECALLS:
        if depth is None or k <= depth:
            metrics[f"r{k}"] = 100.0 * int(np.count_nonzero(ranks <= k)) / len(ranks)
    if depth is None:
        metrics["medr"] = float(np.floor(np.median(ranks - 1)) + 1)
        metrics["meanr"] = float(np.mean(ranks))
    return metrics


def sums(metrics: dict[str, float]) -> dict[str, float]:
    """``rsum``, the sum of the six recalls, and their mean ``rmean``; nothing if one is missing."""
    keys = [f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in RECALLS]
    if any(key not in metrics for key in keys):
        return {}
    total = sum(metrics[key] for key in keys)
    return {"rsum": total, "rmean": total / len(keys)}


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """``i2t_r1 i2t_r5 i2t_r10 i2t_medr i2t_meanr``, the same for ``t2i``, ``rsum`` and ``rmean``.

    Where a second stage ordered fewer candidates than there are (``ranks.depth``), without the
    recalls beyond that depth and without median and mean rank.
    """
    metrics: dict[str, float] = {}
    candidates = {"i2t": len(ranks.t2i), "t2i": len(ranks.i2t)}
    for direction, found in (("i2t", ranks.i2t), ("t2i", ranks.t2i)):
        partial = ranks.depth is not None and ranks.depth < candidates[direction]
        for key, value in rank_metrics(found, ranks.depth if partial else None).items():
            metrics[f"{direction}_{key}"] = value
    return {**metrics, **sums(metrics)}
