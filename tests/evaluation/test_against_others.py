"""Metrics of random and trained scores equal those of eccv-caption, fico-itr and torchmetrics.

All scores are distinct, so the results do not depend on how ties are broken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eccv_caption import Metrics
from fico_itr import instance_retrieval
from safetensors.torch import load_file
from torchmetrics.retrieval import RetrievalHitRate

import itr
from itr.evaluation.ground_truths import GroundTruth
from itr.evaluation.metrics import retrieval_metrics
from itr.evaluation.protocol_metrics import evaluate_scores
from itr.evaluation.protocols import Protocol
from itr.evaluation.query_log import QueryLog
from itr.evaluation.ranks import rank_scores
from tests.conftest import TINY, call_here

IMAGES, FOLDS = 100, 5
KS = (1, 5, 10)


@pytest.fixture(scope="module")
def small() -> Any:
    """eccv-caption with its ground truths restricted to some COCO images, most in ECCV."""
    found = Metrics()
    captions = [int(caption) for caption in found.coco_ids]
    image_of = {caption: found.coco_gts["t2i"][caption][0] for caption in captions}
    wanted = list(dict.fromkeys(image_of[c] for c in found.eccv_gts["t2i"]))[:IMAGES]
    kept = [caption for caption in captions if image_of[caption] in set(wanted)]
    images, gallery = list(dict.fromkeys(image_of[c] for c in kept)), set(kept)

    def cut(truth: dict[str, dict[int, list[int]]]) -> dict[str, dict[int, list[int]]]:
        sides = {"i2t": (set(images), gallery), "t2i": (gallery, set(images))}
        return {
            way: {
                query: inside
                for query, items in truth[way].items()
                if query in queries and (inside := [i for i in items if i in candidates])
            }
            for way, (queries, candidates) in sides.items()
        }

    for name in ("coco_gts", "cxc_gts", "eccv_gts"):
        setattr(found, name, cut(getattr(found, name)))
    found.coco_ids = np.array(kept)
    found.images, found.captions = np.array(images), np.array(kept)
    return found


@pytest.fixture(scope="module", params=["drawn", "trained"])
def scores(
    request: pytest.FixtureRequest, small: Any, tmp_path_factory: pytest.TempPathFactory
) -> np.ndarray:
    owner = owners(small)
    if request.param == "trained":
        values = trained(tmp_path_factory.mktemp("trained"))
        assert (owner == np.arange(len(owner)) // 5).all()  # as the scenes' captions stand, too
    else:
        values = np.random.default_rng(0).normal(size=(len(small.images), len(small.captions)))
        values[owner, np.arange(len(owner))] += 2  # better than chance
    assert values.shape == (len(small.images), len(small.captions))
    assert len(np.unique(values)) == values.size
    return values


def trained(folder: Path) -> np.ndarray:
    """Cosines [100, 500] of a tiny HREM after two epochs, in float64."""
    sizes = [f"data.prepare.test={IMAGES}", f"data.root={folder / 'data'}"]
    given = [word for word in TINY if not word.startswith("data.prepare.test")]
    ran = call_here("train.py", *given, *sizes, f"out={folder / 'run'}")
    assert ran.returncode == 0, ran.stderr
    kept = folder / "kept.safetensors"
    ran = call_here("eval.py", f"checkpoint={folder / 'run'}", f"embeddings={kept}")
    assert ran.returncode == 0, ran.stderr
    found = load_file(kept)
    return (found["images"].double() @ found["texts"].double().t()).numpy()


def owners(small: Any) -> np.ndarray:
    place = {int(image): number for number, image in enumerate(small.images)}
    return np.array([place[small.coco_gts["t2i"][int(c)][0]] for c in small.captions])


@pytest.fixture(scope="module")
def lists(small: Any, scores: np.ndarray) -> dict[str, dict[int, list[int]]]:
    """Full ranked lists, because the release of eccv-caption mishandles truncated ones."""
    i2t, t2i = np.argsort(-scores, axis=1), np.argsort(-scores.T, axis=1)
    return {
        "i2t": {
            int(q): small.captions[row].tolist() for q, row in zip(small.images, i2t, strict=True)
        },
        "t2i": {
            int(q): small.images[row].tolist() for q, row in zip(small.captions, t2i, strict=True)
        },
    }


@pytest.mark.parametrize("way", ["i2t", "t2i"])
def test_coco_recalls_equal_eccv_caption(
    small: Any, scores: np.ndarray, lists: Any, way: str
) -> None:
    fold = Protocol("folds", fold=IMAGES // FOLDS)
    ours = evaluate_scores(scores, owners(small), [Protocol("full"), fold])
    for k in KS:
        theirs = small.coco_5k_recalls(lists, way, K=k)[way]
        assert ours[f"{way}_r{k}"] == pytest.approx(100 * theirs, rel=1e-12)
        theirs = small.coco_1k_recalls(lists, "all", K=k)[way]
        assert ours[f"folds/{way}_r{k}"] == pytest.approx(100 * theirs, rel=1e-12)


def cut_truth(small: Any, name: str) -> GroundTruth:
    """The ground truth of the same images and captions."""
    positives = {"cxc": small.cxc_gts, "eccv": small.eccv_gts}[name]
    return GroundTruth(name, positives, frozenset(small.images), frozenset(small.captions))


@pytest.mark.parametrize("way", ["i2t", "t2i"])
def test_cxc_and_eccv_metrics_equal_eccv_caption(
    small: Any, scores: np.ndarray, lists: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "itr.evaluation.retrieval_set.coco_ground_truth", lambda n, _: cut_truth(small, n)
    )
    logs: list[QueryLog] = []
    ids = {"image_ids": small.images, "caption_ids": small.captions}
    ours = itr.evaluate(scores, owners(small), ["full", "cxc", "eccv"], logs=logs, **ids)
    for k in KS:
        theirs = small.cxc_recalls(lists, way, K=k)[way]
        assert ours[f"cxc/{way}_r{k}"] == pytest.approx(100 * theirs, rel=1e-12)
    theirs = small.eccv_metrics(lists, way)
    for key in ("map_at_r", "rprecision", "r1"):
        assert ours[f"eccv/{way}_{key}"] == pytest.approx(
            100 * theirs[f"eccv_{key}"][way], rel=1e-12
        )
    assert ours[f"eccv/{way}_map_at_r"] < ours[f"eccv/{way}_rprecision"] < 100
    assert list(logs[0].ranks) == ["full"] and list(logs[0].extra_ranks) == ["cxc", "eccv"]
    for name in ("cxc", "eccv"):  # the ranks that are kept are those that were counted
        kept = getattr(logs[0].extra_ranks[name], way)
        share = 100 * (kept[np.isfinite(kept)] <= 1).mean()
        assert share == pytest.approx(ours[f"{name}/{way}_r1"])
    why = "i2i, t2t (only image-text scores are available)"
    assert ours["cxc/directions_skipped"] == why


def test_uneven_captions_equal_fico_itr() -> None:
    draw = np.random.default_rng(1)
    counts = draw.integers(2, 5, 40)
    owner = np.repeat(np.arange(40), counts)
    scores = draw.normal(size=(40, len(owner))).astype(np.float32)
    scores[owner, np.arange(len(owner))] += 1.5
    ours = retrieval_metrics(rank_scores(scores, owner))
    forward, backward = instance_retrieval(scores, captions_per_image=owner.tolist())
    theirs = {"i2t": forward, "t2i": backward}
    for way, found in theirs.items():
        for key, named in (
            ("medr", "MedianR"),
            ("meanr", "MeanR"),
            *((f"r{k}", f"R@{k}") for k in KS),
        ):
            assert ours[f"{way}_{key}"] == pytest.approx(float(found[named]), rel=1e-12)


def test_recall_equals_torchmetrics_hit_rate() -> None:
    draw = np.random.default_rng(2)
    owner = np.repeat(np.arange(30), 5)
    scores = draw.normal(size=(30, 150)).astype(np.float32)
    scores[owner, np.arange(150)] += 1
    ours = retrieval_metrics(rank_scores(scores, owner))
    match = torch.from_numpy(owner[None, :] == np.arange(30)[:, None])
    values = torch.from_numpy(scores)
    for way, given, right in (("i2t", values, match), ("t2i", values.t(), match.t())):
        query = torch.arange(len(given))[:, None].expand_as(given)
        for k in KS:
            rate = RetrievalHitRate(top_k=k)
            found = rate(given.flatten(), right.flatten(), indexes=query.flatten())
            assert ours[f"{way}_r{k}"] == pytest.approx(100 * float(found), rel=1e-6)
