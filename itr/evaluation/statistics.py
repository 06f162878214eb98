"""Uncertainty of results: bootstrap intervals over images, spread over seeds, paired tests.

N images, C captions, Q queries of either kind, K cut-offs, S resamples. The resampling unit is an
image with all its captions: captions of one image succeed and fail together, so treating them as
independent would make the intervals too narrow. The candidates are not resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from itr.errors import DataError
from itr.evaluation.metrics import RECALLS
from itr.evaluation.predictions import ACCURACY, Predictions
from itr.evaluation.ranks import Ranks

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 2**22  # random numbers drawn at a time
DIRECTIONS = ("i2t", "t2i")
METRICS = (*(f"{direction}_r{k}" for direction in DIRECTIONS for k in RECALLS), "rsum")


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile bootstrap interval, in per cent (rSum: in points)."""

    value: float
    low: float
    high: float


class ImageHits(NamedTuple):
    """Correct queries by image and cut-off."""

    images: np.ndarray  # [N, 1 + K]: whether the image is a query, and its hits at each cut-off
    captions: np.ndarray  # [N, K]: hits of the image's captions at each cut-off
    n_captions: np.ndarray  # [N]: captions of the image that are queries

    @classmethod
    def of(cls, ranks: Ranks, text_to_image: np.ndarray) -> ImageHits:
        """Count the hits of ``ranks``, in which NaN marks images and captions that are not
        queries."""
        cutoffs = np.array(RECALLS)
        is_query = np.isfinite(ranks.i2t)
        hits = (ranks.i2t[:, None] <= cutoffs) & is_query[:, None]
        images = np.column_stack([is_query, hits]).astype(float)
        # A caption without an image (-1) is no query and adds nothing anywhere.
        owner, size = np.maximum(np.asarray(text_to_image), 0), len(ranks.i2t)
        is_query = np.isfinite(ranks.t2i)
        captions = [
            np.bincount(owner, weights=(ranks.t2i <= k) & is_query, minlength=size) for k in RECALLS
        ]
        n_captions = np.bincount(owner, weights=is_query, minlength=size)
        return cls(images, np.stack(captions, axis=1), n_captions)

    def block(self, images: slice) -> ImageHits:
        """The hits of some images."""
        return ImageHits(self.images[images], self.captions[images], self.n_captions[images])

    def recalls(self, weights: np.ndarray) -> np.ndarray:
        """R@K and rSum [S, 7] if each image counts ``weights`` [S, N] times."""
        i2t = weights @ self.images
        with np.errstate(invalid="ignore", divide="ignore"):
            t2i = (weights @ self.captions) / (weights @ self.n_captions)[:, None]
            both = np.concatenate([i2t[:, 1:] / i2t[:, :1], t2i], axis=1)
        return 100 * np.concatenate([both, both.sum(axis=1, keepdims=True)], axis=1)


def recall_intervals(
    ranks: Ranks | Sequence[Ranks],
    text_to_image: np.ndarray,
    fold: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """``i2t_r1`` ... ``t2i_r10`` and ``rsum`` with their 95 % intervals.

    ``ranks`` starts at 1; NaN marks an image or caption that is not a query. For the ranks of
    several seeds, the interval is that of their mean: an image is drawn for all seeds at once.
    ``text_to_image`` [C] as for `rank_embeddings`. With ``fold``, images are resampled within
    contiguous blocks of that size and the values of the blocks are averaged, like the metric itself
    (Efron and Tibshirani 1993).
    """
    seeds = [ranks] if isinstance(ranks, Ranks) else ranks
    by_seed = [ImageHits.of(each, text_to_image) for each in seeds]
    hits = ImageHits(*(np.mean(arrays, axis=0) for arrays in zip(*by_seed, strict=True)))
    n_images, rng = len(hits.images), np.random.default_rng(seed)
    blocks = _blocks(n_images, fold)
    drawn = np.zeros((resamples, len(METRICS)))
    value = np.zeros((1, len(METRICS)))
    for images in blocks:
        block = hits.block(images)
        size = len(block.images)
        value += block.recalls(np.ones((1, size))) / len(blocks)
        for start in range(0, resamples, step := max(1, CHUNK // size)):
            count = min(step, resamples - start)
            weights = rng.multinomial(size, np.full(size, 1 / size), size=count).astype(float)
            drawn[start : start + count] += block.recalls(weights) / len(blocks)
    tail = 100 * (1 - LEVEL) / 2
    known = np.flatnonzero(np.isfinite(value[0]))  # a direction may have no queries
    low, high = np.nanpercentile(drawn[:, known], [tail, 100 - tail], axis=0)
    return {
        METRICS[i]: Interval(float(value[0, i]), float(low[n]), float(high[n]))
        for n, i in enumerate(known)
    }


def item_intervals(
    split: str, predictions: Predictions, owners: np.ndarray, resamples: int = RESAMPLES
) -> dict[str, dict[str, Interval]]:
    """``accuracy`` with its 95 % interval, by prefix of the flat keys (subsets have their own).

    ``owners`` [Q] are the images of the items; an image is drawn with all its items. Items without
    a known answer do not count.
    """
    found = {}
    for subset, members in predictions.scored():
        interval = _mean_interval(predictions.scores[members], owners[members], resamples)
        found[f"{split}/{subset}/" if subset else f"{split}/"] = {ACCURACY: interval}
    return found


def _mean_interval(scores: np.ndarray, owners: np.ndarray, resamples: int) -> Interval:
    """The mean of ``scores`` in per cent, resampled by image."""
    images, index = np.unique(owners, return_inverse=True)
    size, rng = len(images), np.random.default_rng(0)
    totals, counts = np.bincount(index, weights=scores), np.bincount(index)
    drawn = np.empty(resamples)
    for start in range(0, resamples, step := max(1, CHUNK // size)):
        count = min(step, resamples - start)
        weights = rng.multinomial(size, np.full(size, 1 / size), size=count)
        drawn[start : start + count] = 100 * (weights @ totals) / (weights @ counts)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(100 * float(scores.mean()), float(low), float(high))


def named_intervals(
    logs: Sequence[Mapping[str, Ranks]],
    name: str,
    text_to_image: np.ndarray,
    fold: int | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """`recall_intervals` of the ranks called ``name`` in each of ``logs`` (one per seed).

    Includes those within a modality (``i2i_r1`` ... ``t2t_r10``) if every log has them.
    """
    intervals = recall_intervals([log[name] for log in logs], text_to_image, fold, 0, resamples)
    if any(f"{name}/within" not in log for log in logs):
        return intervals
    ranks = [log[f"{name}/within"] for log in logs]
    within = recall_intervals(ranks, text_to_image, None, 0, resamples)
    within.pop("rsum", None)
    renamed = {"i2t": "i2i", "t2i": "t2t"}
    return intervals | {renamed[key[:3]] + key[3:]: value for key, value in within.items()}


def prefixed_intervals(
    split: str, ranks: Mapping[str, Ranks], text_to_image: np.ndarray, folds: Mapping[str, int]
) -> dict[str, dict[str, Interval]]:
    """`named_intervals` of every entry of ``ranks``, by the prefix of its metrics in the results of
    ``split``. The first entry belongs to the first protocol."""
    intervals = {}
    first = next(iter(ranks), "")
    for name in (name for name in ranks if not name.endswith("/within")):
        *variant, protocol = name.split("/")
        prefix = "".join(f"{word}/" for word in (split, *variant, protocol) if word != first)
        intervals[prefix] = named_intervals([ranks], name, text_to_image, folds.get(protocol))
    return intervals


def _blocks(n_images: int, fold: int | None) -> list[slice]:
    size = fold or n_images
    return [slice(start, start + size) for start in range(0, n_images, size)]


# Several seeds


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1) over seeds; None for a single seed."""
    numbers = np.asarray(values, dtype=float)
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return float(numbers.mean()), deviation


# Two runs on the same queries


@dataclass(frozen=True)
class PairedTest:
    """One metric of two runs, A and B."""

    a: float
    b: float
    wins: int  # queries that only B answers correctly
    losses: int  # queries that only A answers correctly
    p: float  # probability of a difference at least this large if A and B were exchangeable

    @property
    def difference(self) -> float:
        """B minus A, in points."""
        return self.b - self.a


def require_same_items(a: Predictions, b: Predictions) -> None:
    """Raises DataError unless both runs predicted the same items in the same order."""
    if (a.task, a.ids, a.image_ids, a.texts) != (b.task, b.ids, b.image_ids, b.texts):
        raise DataError(
            f"the two runs have different items ({len(a.ids)} of task={a.task} and {len(b.ids)} of "
            f"task={b.task}, or in another order); evaluate both on the same files and split"
        )


def compare_predictions(
    a: Predictions, b: Predictions, seed: int = 0, resamples: int = 10_000
) -> dict[str, PairedTest]:
    """Test run B against run A: the accuracy over all items, and over each subset.

    Two-sided sign-flip permutation test that exchanges A and B by image, with its items (with one
    item per image and scores of 0 and 1, this is McNemar's test). Raises DataError if the two runs
    have different items, or if none has a known answer.
    """
    require_same_items(a, b)
    tests = {}
    for subset, members in replace(a, scores=a.scores + b.scores).scored():  # NaN in either
        name = ACCURACY if subset is None else f"{subset} {ACCURACY}"
        tests[name] = _paired_means(a, b, members, np.random.default_rng(seed), resamples)
    if not tests:
        raise DataError("no item has a published answer, so that nothing can be compared")
    return tests


def _paired_means(
    a: Predictions, b: Predictions, members: np.ndarray, rng: np.random.Generator, resamples: int
) -> PairedTest:
    first, second = a.scores[members], b.scores[members]
    _, owner = np.unique(np.array(a.image_ids)[members], return_inverse=True)
    gain = 100 * np.bincount(owner, weights=second - first) / len(first)
    p = _sign_flips(gain[:, None], rng, resamples)[0]
    wins, losses = int((second > first).sum()), int((second < first).sum())
    return PairedTest(100 * float(first.mean()), 100 * float(second.mean()), wins, losses, float(p))


def compare_ranks(
    a: Ranks, b: Ranks, text_to_image: np.ndarray, seed: int = 0, resamples: int = 10_000
) -> dict[str, PairedTest]:
    """Test run B against run A: every R@K, rSum, and the mean ranks ``i2t_rank`` and ``t2i_rank``.

    R@K and rSum: two-sided sign-flip permutation test that exchanges A and B by image, with its
    captions (with one query per image, this is McNemar's test). Mean ranks: Wilcoxon's signed-rank
    test of each image's mean difference; omitted if a match is not among the re-ranked candidates.
    Wins and losses count queries. Raises DataError if the two runs have different queries.
    """
    for direction in DIRECTIONS:
        first, second = getattr(a, direction), getattr(b, direction)
        if first.shape != second.shape or (np.isnan(first) != np.isnan(second)).any():
            raise DataError(
                f"the two runs have different {direction} queries ({np.isfinite(first).sum()} and "
                f"{np.isfinite(second).sum()}); evaluate both on the same split and protocol"
            )
    hits_a, hits_b = ImageHits.of(a, text_to_image), ImageHits.of(b, text_to_image)
    n_images, n_captions = hits_a.images[:, 0].sum(), hits_a.n_captions.sum()
    scale = 100 / np.array([n_images] * len(RECALLS) + [n_captions] * len(RECALLS))
    gains = hits_b.images[:, 1:] - hits_a.images[:, 1:], hits_b.captions - hits_a.captions
    each = np.concatenate(gains, axis=1)
    each = each * scale
    each = np.concatenate([each, each.sum(axis=1, keepdims=True)], axis=1)  # [N, 7] points
    p = _sign_flips(each, np.random.default_rng(seed), resamples)
    one = np.ones((1, len(each)))
    values = [hits.recalls(one)[0] for hits in (hits_a, hits_b)]
    counts = _wins_and_losses(a, b)
    tests = {
        name: PairedTest(values[0][i], values[1][i], *counts[name], p[i])
        for i, name in enumerate(METRICS)
    }
    return {**tests, **_mean_ranks(a, b, text_to_image)}


def _sign_flips(each: np.ndarray, rng: np.random.Generator, resamples: int) -> list[float]:
    """Two-sided p of the column sums of ``each`` [N, M] under random signs of its rows."""
    moved = each[(each != 0).any(axis=1)]  # rows of zeros change nothing
    observed = np.abs(moved.sum(axis=0))
    beyond = np.zeros(each.shape[1])
    for start in range(0, resamples, step := max(1, CHUNK // max(1, len(moved)))):
        count = min(step, resamples - start)
        signs = rng.integers(0, 2, size=(count, len(moved)), dtype=np.int8).astype(float) * 2 - 1
        beyond += (np.abs(signs @ moved) >= observed * (1 - 1e-9)).sum(axis=0)
    return [float(value) for value in (beyond + 1) / (resamples + 1)]


def _wins_and_losses(a: Ranks, b: Ranks) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for direction in DIRECTIONS:
        first, second = getattr(a, direction), getattr(b, direction)
        for k in RECALLS:
            wins, losses = (second <= k) & (first > k), (first <= k) & (second > k)
            counts[f"{direction}_r{k}"] = int(wins.sum()), int(losses.sum())
    wins, losses = np.array(list(counts.values())).sum(axis=0)
    return {**counts, "rsum": (int(wins), int(losses))}


def _mean_ranks(a: Ranks, b: Ranks, text_to_image: np.ndarray) -> dict[str, PairedTest]:
    tests = {}
    owners = np.arange(len(a.i2t)), np.asarray(text_to_image)
    for direction, owner in zip(DIRECTIONS, owners, strict=True):
        if a.beyond_depth(direction).any() or b.beyond_depth(direction).any():
            continue  # a match that is not among the re-ranked candidates has no exact rank
        first, second = getattr(a, direction), getattr(b, direction)
        is_query = np.isfinite(first)
        difference, owner = (second - first)[is_query], owner[is_query]
        sums = np.bincount(owner, weights=difference, minlength=len(a.i2t))
        sums = sums[sums != 0]
        from scipy import stats  # slow to import; only comparisons need it

        p = float(stats.wilcoxon(sums).pvalue) if len(sums) else 1.0
        tests[f"{direction}_rank"] = PairedTest(
            float(first[is_query].mean()),
            float(second[is_query].mean()),
            int((difference < 0).sum()),
            int((difference > 0).sum()),
            p,
        )
    return tests


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of the p-values for multiple testing (Holm 1979)."""
    ordered, adjusted, floor = sorted(p, key=lambda name: p[name]), {}, 0.0
    for position, name in enumerate(ordered):
        floor = max(floor, min(1.0, p[name] * (len(ordered) - position)))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p}
