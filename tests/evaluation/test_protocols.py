"""Metrics and protocols computed by hand; reference numbers are in tests/parity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itr.errors import ConfigError
from itr.evaluation.metrics import retrieval_metrics
from itr.evaluation.protocol_metrics import evaluate_embeddings
from itr.evaluation.protocols import PROTOCOLS, Protocol, find_protocols
from itr.evaluation.ranks import Ranks, rank_scores
from itr.evaluation.retrieval_set import RetrievalSet, applicable_protocols


def five(metrics: dict[str, float], direction: str) -> list[float]:
    return [metrics[f"{direction}_{key}"] for key in ("r1", "r5", "r10", "medr", "meanr")]


def test_metrics_by_hand():
    metrics = retrieval_metrics(Ranks(i2t=np.array([1, 6]), t2i=np.array([1, 2, 10, 11])))
    assert five(metrics, "i2t") == [50, 50, 100, 3, 3.5]  # floor(median of 0 and 5) + 1
    assert five(metrics, "t2i") == [25, 50, 75, 6, 6]
    assert metrics["rsum"] == 350 and metrics["rmean"] == 350 / 6


def test_folds_of_ragged_captions_in_any_order():
    draw = np.random.default_rng(3)
    owner = draw.permutation(np.repeat(np.arange(12), draw.integers(1, 5, 12)))
    images = torch.from_numpy(draw.normal(size=(12, 6)).astype(np.float32))
    texts = torch.from_numpy(draw.normal(size=(len(owner), 6)).astype(np.float32))
    found = evaluate_embeddings(images, texts, owner, [Protocol("folds", fold=4)])
    means: dict[str, list[float]] = {}
    for start in (0, 4, 8):
        columns = [c for c in range(len(owner)) if start <= owner[c] < start + 4]
        scores = (images[start : start + 4] @ texts[columns].t()).numpy()
        metrics = retrieval_metrics(rank_scores(scores, [owner[c] - start for c in columns]))
        for key, value in metrics.items():
            means.setdefault(key, []).append(value)
    facts = {key: found.pop(key) for key in ("n_images", "n_captions", "captions", "folds")}
    assert facts == {"n_images": 12, "n_captions": len(owner), "captions": "all", "folds": 3}
    assert found == pytest.approx({key: np.mean(values) for key, values in means.items()})


def test_coco_protocols_need_5000_images():
    asked = find_protocols(["coco_5k", "coco_1k_5fold"])
    five, one = (RetrievalSet(np.arange(size), size) for size in (5000, 1000))
    assert applicable_protocols(asked, five) == (asked, {})
    skipped = {p.name: "needs 5000 images" for p in asked}
    assert applicable_protocols(asked, one) == ([PROTOCOLS["full"]], skipped)
    f30k = find_protocols(["f30k_1k"])
    assert applicable_protocols(f30k, one) == (f30k, {})
    odd = RetrievalSet(np.arange(1014), 1014)
    assert applicable_protocols(f30k, odd) == (
        [PROTOCOLS["full"]],
        {"f30k_1k": "needs 1000 images"},
    )


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(ConfigError, match="protocol: .*'coco_5'.* coco_5k"):
        find_protocols(["coco_5"])
    with pytest.raises(ConfigError, match="^protocol: .*empty"):
        find_protocols([])
