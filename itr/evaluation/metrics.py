"""Ranks to the field's numbers: recall at K in per cent, median and mean rank, rSum."""

from __future__ import annotations

import numpy as np

from itr.evaluation.ranks import Ranks

RECALLS = (1, 5, 10)


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """``i2t_r1 i2t_r5 i2t_r10 i2t_medr i2t_meanr``, the same for ``t2i``, and ``rsum``.

    Recalls are per cent of the queries whose rank is at most K; rSum is the sum of the six. The
    median is rounded down as SCAN's evaluation does, whose ranks count from 0.
    """
    metrics: dict[str, float] = {}
    for direction, rank in (("i2t", ranks.i2t), ("t2i", ranks.t2i)):
        for k in RECALLS:
            hits = int(np.count_nonzero(rank <= k))
            metrics[f"{direction}_r{k}"] = 100.0 * hits / len(rank)
        metrics[f"{direction}_medr"] = float(np.floor(np.median(rank - 1)) + 1)
        metrics[f"{direction}_meanr"] = float(np.mean(rank))
    metrics["rsum"] = sum(metrics[f"{d}_r{k}"] for d in ("i2t", "t2i") for k in RECALLS)
    return metrics
