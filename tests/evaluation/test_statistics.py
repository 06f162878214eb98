"""Intervals, seeds and paired tests against scipy and exact counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from itr.errors import DataError
from itr.evaluation.metrics import retrieval_metrics
from itr.evaluation.ranks import Ranks
from itr.evaluation.statistics import (
    METRICS,
    compare_ranks,
    holm,
    recall_intervals,
    spread,
)


def random_ranks(seed: int, counts: Any, high: int = 15) -> tuple[Ranks, np.ndarray]:
    """Random ranks; those of the captions of an image depend on the same difficulty."""
    rng = np.random.default_rng(seed)
    counts = np.asarray(counts)
    owner = np.repeat(np.arange(len(counts)), counts)
    hard = rng.integers(1, high, size=len(counts))
    t2i = rng.integers(1, 1 + hard[owner])
    return Ranks(rng.integers(1, high, size=len(counts)).astype(float), t2i.astype(float)), owner


def test_values_equal_the_metrics_and_intervals_equal_scipy():
    ranks, owner = random_ranks(0, np.random.default_rng(1).integers(1, 8, size=120))
    found = recall_intervals(ranks, owner, resamples=4000)
    expected = retrieval_metrics(ranks)
    for name in METRICS:
        assert found[name].value == pytest.approx(expected[name])
        assert found[name].low < found[name].value < found[name].high
    hits = np.bincount(owner, weights=ranks.t2i <= 5)
    theirs = stats.bootstrap(
        (hits, np.bincount(owner)),
        lambda h, n, axis=-1: 100 * h.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found["t2i_r5"].low == pytest.approx(theirs.low, abs=0.6)
    assert found["t2i_r5"].high == pytest.approx(theirs.high, abs=0.6)
    theirs = stats.bootstrap(
        (100.0 * (ranks.i2t <= 5),), np.mean, method="percentile", n_resamples=4000, rng=3
    ).confidence_interval
    assert found["i2t_r5"].low == pytest.approx(theirs.low, abs=1.0)
    assert found["i2t_r5"].high == pytest.approx(theirs.high, abs=1.0)


def test_captions_of_an_image_are_resampled_together():
    """If captions have the rank of their image, they add no information."""
    rng = np.random.default_rng(0)
    image = np.where(rng.random(200) < 0.5, 1.0, 20.0)
    owner = np.repeat(np.arange(200), 5)
    found = recall_intervals(Ranks(image, image[owner]), owner)
    for k in (1, 5, 10):
        one, other = found[f"i2t_r{k}"], found[f"t2i_r{k}"]
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_intervals_have_their_nominal_coverage():
    rng, owner, inside = np.random.default_rng(5), np.arange(150), 0
    for trial in range(200):
        rank = np.where(rng.random(150) < 0.4, 1.0, 9.0)
        found = recall_intervals(Ranks(rank, rank), owner, seed=trial, resamples=400)["i2t_r1"]
        inside += found.low <= 40.0 <= found.high
    assert 180 <= inside <= 199  # 95 % of 200 is 190; three deviations are 9


def test_folds_are_averaged_and_nan_is_not_counted():
    ranks, owner = random_ranks(3, [5] * 40 + [2] * 40)
    ranks.t2i[owner == 7] = np.nan
    found = recall_intervals(ranks, owner, fold=40)
    each = []
    for part in (slice(0, 40), slice(40, 80)):
        mine = (owner >= part.start) & (owner < part.stop) & np.isfinite(ranks.t2i)
        each.append(retrieval_metrics(Ranks(ranks.i2t[part], ranks.t2i[mine])))
    for name in METRICS:
        assert found[name].value == pytest.approx((each[0][name] + each[1][name]) / 2)


def test_spread_over_seeds():
    assert spread([61.0]) == (61.0, None)
    assert spread([60.0, 61.0, 63.5]) == pytest.approx((61.5, np.std([60, 61, 63.5], ddof=1)))


def test_one_query_per_image_is_mcnemars_test():
    rng = np.random.default_rng(0)
    a = np.where(rng.random(300) < 0.5, 1.0, 7.0)
    b = np.where(rng.random(300) < 0.6, 1.0, 7.0)
    found = compare_ranks(Ranks(a, a), Ranks(b, b), np.arange(300), resamples=40_000)["i2t_r1"]
    wins, losses = int(((b == 1) & (a > 1)).sum()), int(((a == 1) & (b > 1)).sum())
    assert (found.wins, found.losses) == (wins, losses)
    assert found.difference == pytest.approx(100 * (wins - losses) / 300)
    exact = stats.binomtest(wins, wins + losses).pvalue
    assert found.p == pytest.approx(exact, rel=0.15, abs=0.002)


def test_clustered_captions_equal_scipys_permutation_test():
    counts = np.random.default_rng(1).integers(1, 6, size=60)
    (a, owner), (b, _) = random_ranks(0, counts), random_ranks(9, counts, high=11)
    found = compare_ranks(a, b, owner)
    gain = np.bincount(owner, weights=(b.t2i <= 5).astype(float) - (a.t2i <= 5))
    theirs = stats.permutation_test(
        (gain,), lambda x, axis: x.sum(axis), permutation_type="samples", vectorized=True, rng=0
    )
    assert found["t2i_r5"].p == pytest.approx(theirs.pvalue, abs=0.02)
    both = retrieval_metrics(a), retrieval_metrics(b)
    assert found["rsum"].difference == pytest.approx(both[1]["rsum"] - both[0]["rsum"])
    assert found["t2i_rank"].a == pytest.approx(both[0]["t2i_meanr"])
    assert found["i2t_rank"].p == pytest.approx(
        stats.wilcoxon((b.i2t - a.i2t)[b.i2t != a.i2t]).pvalue
    )


def test_a_run_against_itself_and_against_different_queries():
    ranks, owner = random_ranks(0, [5] * 30)
    same = compare_ranks(ranks, ranks, owner)
    assert all(pair.p == 1 and pair.difference == 0 and not pair.wins for pair in same.values())
    other = Ranks(ranks.i2t, np.where(np.arange(150) < 5, np.nan, ranks.t2i))
    with pytest.raises(DataError, match="t2i .*150 and 145"):
        compare_ranks(ranks, other, owner)


def test_holm_is_at_least_each_p_and_keeps_their_order():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.9})
