"""COCO's 5,000 x 25,000 test split with real ids against the package eccv-caption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from eccv_caption import Metrics

import itr

pytestmark = pytest.mark.soak
WIDTH = 32


@pytest.fixture(scope="module")
def theirs() -> Any:
    return Metrics()


@pytest.fixture(scope="module")
def case(theirs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores [5000, 25000] (float64: no ties), each caption's image, ids of images and captions."""
    captions = np.array([int(caption) for caption in theirs.coco_ids])
    image_of = [theirs.coco_gts["t2i"][int(caption)][0] for caption in captions]
    images = np.array(list(dict.fromkeys(image_of)))
    place = {int(image): number for number, image in enumerate(images)}
    owner = np.array([place[image] for image in image_of])
    draw = np.random.default_rng(0)
    left = draw.normal(size=(len(images), WIDTH))
    right = left[owner] + 1.5 * draw.normal(size=(len(captions), WIDTH))  # R@1 between 5 and 95 %
    return left @ right.T, owner, images, captions


def ranked(scores: np.ndarray, queries: np.ndarray, found: np.ndarray) -> dict[int, list[int]]:
    """Whole lists of ids, best first: its release mishandles lists that are cut."""
    shared = np.array([int(i) for i in found], dtype=object)  # one Python integer for each id
    return {
        int(query): shared[np.argsort(-row)].tolist()
        for query, row in zip(queries, scores, strict=True)
    }


def test_all_protocols_as_eccv_caption_counts(theirs: Any, case: Any) -> None:
    scores, owner, images, captions = case
    assert scores.shape == (5000, 25000)
    protocols = ["coco_5k", "coco_1k_5fold", "cxc", "eccv"]
    ours = itr.evaluate(scores, owner, protocols, image_ids=images, caption_ids=captions)
    lists = {"i2t": ranked(scores, images, captions), "t2i": ranked(scores.T, captions, images)}
    for k in (1, 5, 10):
        folds = theirs.coco_1k_recalls(lists, "all", K=k)
        for way in ("i2t", "t2i"):
            whole = theirs.coco_5k_recalls(lists, way, K=k)[way]
            cxc = theirs.cxc_recalls(lists, way, K=k)[way]
            # The first protocol's numbers stand without its name.
            for name, expected in (("", whole), ("coco_1k_5fold/", folds[way]), ("cxc/", cxc)):
                found = ours[f"{name}{way}_r{k}"]
                assert 5 < found < 100
                assert found == pytest.approx(100 * expected, rel=1e-12), (name, way, k)
    found = theirs.eccv_metrics(lists, "all")
    for way in ("i2t", "t2i"):
        for key in ("map_at_r", "rprecision", "r1"):
            expected = 100 * found[f"eccv_{key}"][way]
            assert ours[f"eccv/{way}_{key}"] == pytest.approx(expected, rel=1e-12), (way, key)
