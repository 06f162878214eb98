"""Speed of counting ranks against sorting per query: ``python benchmarks/rank_speed.py``.

Prints one JSON object: CPU seconds of both (of ``--slice`` of the queries, scaled up; 0: only ours)
for the part that follows the score matrix, their ratio, and the peak memory beyond the embeddings.
``--images 100000 --captions 1000000 --width 64 --slice 0`` is a gallery whose matrix would have
400 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from itr.evaluation.ranks import Matches, count_ranks, rank_embeddings
from itr.evaluation.score_tables import TILE_CPU


def sorting_loop(scores: np.ndarray, matches: Callable[[int], list[int]]) -> np.ndarray:
    """Ranks from 1: one argsort a query, read backwards, its matches looked up one by one."""
    ranks = []
    for query, row in enumerate(scores):
        order = np.argsort(row)[::-1]
        ranks.append(1 + min(int(np.where(order == match)[0][0]) for match in matches(query)))
    return np.array(ranks)


def timed(action: Callable[..., np.ndarray], *arguments: Any) -> tuple[float, np.ndarray]:
    """CPU seconds that a call took, and what it returned."""
    started = time.process_time()
    result = action(*arguments)
    return time.process_time() - started, result


def peak_mib() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--slice", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as numpy sorts
    n, each = options.images, options.captions // options.images
    owner = np.repeat(np.arange(n), each)
    images, texts = torch.empty(n, options.width), torch.empty(each * n, options.width)
    images.normal_(), texts.normal_()
    images[:8] @ texts[:8].t()  # what the libraries take by themselves is not counted

    before, started = peak_mib(), time.process_time()
    rank_embeddings(images, texts, owner)
    report = {
        "seconds_with_products": time.process_time() - started,
        "extra_mib": peak_mib() - before,
        "peak_mib": peak_mib(),
    }
    if options.slice:
        report |= against_sorting(images, texts, owner, options.slice)
    print(json.dumps({key: round(value, 3) for key, value in report.items()}))


def against_sorting(
    images: torch.Tensor, texts: torch.Tensor, owner: np.ndarray, share: float
) -> dict[str, float]:
    """Seconds of both ways over a ``share`` of the queries, scaled up, and their ratio."""
    n, each = len(images), len(texts) // len(images)

    part = max(1, round(n * share))
    naive = counted = 0.0
    for queries, others, rows, columns, match in (
        (
            images,
            texts,
            owner,
            np.arange(each * n),
            lambda i: list(range(each * i, each * (i + 1))),
        ),
        (texts, images, np.arange(each * n), owner, lambda c: [c // each]),
    ):
        count = part * len(queries) // n
        scores = queries[:count] @ others.t()
        among = Matches.of(rows[rows < count], columns[rows < count], count, "cpu")

        def ours(ties: str, scores: torch.Tensor = scores, among: Matches = among) -> np.ndarray:
            return count_ranks(lambda a, b: scores[a:b], scores.shape[1], among, ties, TILE_CPU)

        fast, worst = min((timed(ours, "pessimistic") for _ in range(3)), key=lambda run: run[0])
        slow, ranks = timed(sorting_loop, scores.numpy(), match)
        assert ((ours("optimistic") <= ranks) & (ranks <= worst)).all()  # a sort breaks ties anyhow
        counted, naive = counted + fast * n / part, naive + slow * n / part
    return {"counting_seconds": counted, "sorting_seconds": naive, "ratio": naive / counted}


if __name__ == "__main__":
    main()
