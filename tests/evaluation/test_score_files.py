"""Score files: distractors, one matrix for each direction, short lists, embeddings, bad values."""

import numpy as np
import pytest
import torch

import itr
from itr.errors import DataError
from itr.evaluation.score_matrices import evaluate_file
from itr.jobs.evaluate import evaluate
from tests.conftest import compose

N, PER = 60, 3
OWNER = np.repeat(np.arange(N), PER)
DRAW = np.random.default_rng(0)
IMAGES = DRAW.normal(size=(N, 16)).astype(np.float32)
TEXTS = (np.repeat(IMAGES, PER, 0) + 2 * DRAW.normal(size=(N * PER, 16))).astype(np.float32)
SCORES = IMAGES @ TEXTS.T
RECALLS = (1, 5, 10)


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "s.npz", **{"text_to_image": OWNER, **arrays})
    return tmp_path / "s.npz"


def naive(scores, matches_of):
    """R@K of the rows of ``scores`` that have matches, by sorting."""
    ranks = []
    for row, values in enumerate(scores):
        if len(matches := matches_of(row)):
            order = np.argsort(-values, kind="stable").tolist()
            ranks.append(min(order.index(match) for match in matches))
    recalls = [100 * np.count_nonzero(np.array(ranks) < k) / len(ranks) for k in RECALLS]
    return recalls


def found(results, direction):
    return [results[f"{direction}_r{k}"] for k in RECALLS]


@pytest.mark.parametrize("source", ["scores", "embeddings"])
def test_images_and_captions_without_a_match_are_candidates(tmp_path, source):
    owner = OWNER.copy()
    owner[owner % 3 == 1] = -1
    given = {"scores": SCORES} if source == "scores" else {"images": IMAGES, "texts": TEXTS}
    results = evaluate_file(saved(tmp_path, text_to_image=owner, **given), logs=(logs := []))
    t2i = naive(SCORES.T, lambda c: [owner[c]] if owner[c] >= 0 else [])
    i2t = naive(SCORES, lambda i: np.flatnonzero(owner == i))
    assert found(results, "i2t") == pytest.approx(i2t) and found(results, "t2i") == pytest.approx(
        t2i
    )
    assert (results["images_without_caption"], results["captions_without_image"]) == (20, 60)
    assert (results["n_images"], results["n_captions"]) == (N, N * PER)
    assert np.isnan(logs[0].ranks["full"].t2i).sum() == 60
    fewer = itr.evaluate(SCORES[owner[::PER] >= 0][:, owner >= 0], np.repeat(np.arange(40), PER))
    assert fewer["t2i_r1"] > t2i[0]  # without the distractors it is another question


def short_lists(k, seed):
    """Matrices with scores of the k best candidates of a first stage, -100 elsewhere."""
    fine = SCORES + 3 * np.random.default_rng(seed).normal(size=SCORES.shape)
    i2t, t2i = (np.full(s.shape, -100.0, np.float32) for s in (SCORES, SCORES.T))
    for made, first, second in ((i2t, SCORES, fine), (t2i, SCORES.T, fine.T)):
        for row, values in enumerate(first):
            best = np.argsort(-values)[:k]
            made[row, best] = second[row, best]
    return i2t, t2i


@pytest.mark.parametrize("name", ["scores", "score_matrix_i2t"])
def test_a_matrix_for_each_direction(tmp_path, name):
    i2t, t2i = short_lists(20, 1)
    results = evaluate_file(saved(tmp_path, **{name: i2t, "score_matrix_t2i": t2i}))
    by_hand = naive(i2t, lambda i: np.flatnonzero(OWNER == i))
    assert found(results, "i2t") == pytest.approx(by_hand)
    assert found(results, "t2i") == pytest.approx(naive(t2i, lambda c: [OWNER[c]]))
    assert results["rerank_k"] == 20 and "i2t_medr" not in results
    dense = evaluate_file(saved(tmp_path, **{name: SCORES, "score_matrix_t2i": 2 * SCORES.T}))
    assert dense["rsum"] == pytest.approx(itr.evaluate(SCORES, OWNER)["rsum"])
    assert dense["i2t_medr"] >= 1 and dense["rerank_k"] == "unknown"


def test_embeddings_are_ranked_as_their_scores(tmp_path):
    scores = itr.evaluate(SCORES, OWNER)
    for dtype in (np.float32, np.float64):
        path = saved(tmp_path, images=IMAGES.astype(dtype), texts=TEXTS.astype(dtype))
        results = evaluate_file(path)
        assert results["rsum"] == scores["rsum"]
    arguments = [f"scores={path}", f"out={tmp_path / 'out'}", "tracker=none"]
    assert evaluate(compose("eval", arguments))["test/rsum"] == scores["rsum"]


@pytest.mark.parametrize("arrays, words", [
    ({"scores": SCORES, "score_matrix_t2i": SCORES}, r"score_matrix_t2i: .*60, 180.*180, 60"),
    ({"score_matrix_i2t": SCORES}, "score_matrix_i2t but no score_matrix_t2i; call it scores"),
    ({"scores": SCORES, "images": IMAGES, "texts": TEXTS}, "both score matrices and embeddings"),
    ({"images": IMAGES, "texts": TEXTS[:, :8]}, "images are 16 wide and texts 8"),
    ({"images": IMAGES * np.where(np.arange(N) == 7, np.nan, 1)[:, None], "texts": TEXTS}, "row 7"),
    ({"images": IMAGES[0], "texts": TEXTS}, "images: float32 of shape"),
    ({"images": IMAGES}, "missing scores"),
    ({"scores": np.where(np.arange(180) == 9, np.inf, SCORES)}, r"scores\[0, 9\] is infinite"),
    ({"scores": SCORES.astype(np.longdouble)}, "16, 32 or 64 bits"),
    ({"scores": np.full_like(SCORES, -np.inf)}, "every score is -inf"),
    ({"images": IMAGES * 1e30, "texts": TEXTS * 1e30}, "may exceed float32"),
    ({"images": IMAGES.astype(float) * 1e60, "texts": TEXTS}, "beyond float32"),
    ({"scores": SCORES, "image_ids": np.arange(N, dtype=np.uint64) + 2**63}, r"below 2 \*\* 63"),
])  # fmt: skip
def test_files_that_cannot_be_ranked(tmp_path, arrays, words):
    with pytest.raises(DataError, match=f"s.npz: .*{words}"):
        evaluate_file(saved(tmp_path, **arrays))
    if "infinite" in words:
        with pytest.raises(DataError, match=words):
            itr.evaluate(torch.from_numpy(arrays["scores"]), OWNER)


def test_unused_arrays_are_named(tmp_path, caplog):
    evaluate_file(saved(tmp_path, scores=SCORES, other=SCORES, temperature=np.ones(1)))
    assert any("not used: other, temperature" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("change", [
    lambda scores: scores.astype(">f4"),
    lambda scores: scores.astype(float) * 1e300,
    lambda scores: scores / np.abs(scores).max() * np.finfo(np.float32).max,
    lambda scores: scores.astype(np.float16),
])  # fmt: skip
def test_scores_of_any_range_and_order_of_bytes(tmp_path, change):
    scores = change(SCORES)
    logs = []
    results = evaluate_file(saved(tmp_path, scores=scores), logs=logs)
    naively = naive(scores.astype(float), lambda i: np.flatnonzero(OWNER == i))
    assert found(results, "i2t") == pytest.approx(naively)
    assert logs[0].match_counts.sum() == N * PER
    assert logs[0].nonmatch_counts.sum() == N * N * PER - N * PER
    assert np.isfinite(logs[0].bin_edges).all()


def test_a_single_array_is_no_score_file(tmp_path):
    np.save(tmp_path / "s.npy", SCORES)
    with pytest.raises(DataError, match=r"s\.npy: .*without a name.*np\.savez"):
        evaluate_file(tmp_path / "s.npy")
