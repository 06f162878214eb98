"""How sure a number is: bootstrap intervals over images, spread over seeds, paired tests.

N images, C captions, Q queries of either kind, K cut-offs, S resamples. The unit that is drawn is
the image with all its captions: captions of one image succeed and fail together, and an interval
that took them for independent would be too narrow. Galleries stay as they were evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from itr.errors import DataError
from itr.evaluation.metrics import RECALLS
from itr.evaluation.ranks import Ranks

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 2**22  # numbers drawn at a time
METRICS = (*(f"{way}_r{k}" for way in ("i2t", "t2i") for k in RECALLS), "rsum")


@dataclass(frozen=True)
class Interval:
    """An estimate and the percentile interval of its bootstrap, in per cent (rSum: their sum)."""

    value: float
    low: float
    high: float


def recall_intervals(
    ranks: Ranks | Sequence[Ranks],
    text_to_image: np.ndarray,
    fold: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """``i2t_r1`` ... ``t2i_r10`` and ``rsum`` with their 95 % intervals.

    ``ranks`` counts from 1; NaN marks a query that was not asked. Those of several seeds give the
    interval of their mean: an image is drawn for all of them at once. ``text_to_image`` [C] as for
    `rank_embeddings`. With ``fold`` images of contiguous blocks are drawn within their block and
    the blocks' values averaged, as the metric itself is (Efron and Tibshirani 1993).
    """
    each = [_hits(one, text_to_image) for one in ([ranks] if isinstance(ranks, Ranks) else ranks)]
    image_hits, caption_hits, asked = (np.mean(part, axis=0) for part in zip(*each, strict=True))
    n_images, rng = len(image_hits), np.random.default_rng(seed)
    blocks = _blocks(n_images, fold)
    drawn = np.zeros((resamples, len(METRICS)))
    value = np.zeros((1, len(METRICS)))
    for block in blocks:
        parts = image_hits[block], caption_hits[block], asked[block]
        size = len(parts[0])
        value += _recalls(np.ones((1, size)), *parts) / len(blocks)
        for start in range(0, resamples, step := max(1, CHUNK // size)):
            count = min(step, resamples - start)
            weights = rng.multinomial(size, np.full(size, 1 / size), size=count).astype(float)
            drawn[start : start + count] += _recalls(weights, *parts) / len(blocks)
    tail = 100 * (1 - LEVEL) / 2
    known = np.flatnonzero(np.isfinite(value[0]))  # a direction may have asked nothing
    low, high = np.nanpercentile(drawn[:, known], [tail, 100 - tail], axis=0)
    return {
        METRICS[i]: Interval(float(value[0, i]), float(low[n]), float(high[n]))
        for n, i in enumerate(known)
    }


def named_intervals(
    logs: Sequence[Mapping[str, Ranks]],
    name: str,
    text_to_image: np.ndarray,
    fold: int | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """`recall_intervals` of the ranks called ``name`` in each of ``logs`` (one a seed), and of
    those within images and within captions (``i2i_r1`` ... ``t2t_r10``) where there are any."""
    found = recall_intervals([one[name] for one in logs], text_to_image, fold, 0, resamples)
    if any(f"{name}/within" not in one for one in logs):
        return found
    within = [one[f"{name}/within"] for one in logs]
    inner = recall_intervals(within, text_to_image, None, 0, resamples)
    inner.pop("rsum", None)
    return found | {{"i2t": "i2i", "t2i": "t2t"}[k[:3]] + k[3:]: v for k, v in inner.items()}


def prefixed_intervals(
    split: str, ranks: Mapping[str, Ranks], text_to_image: np.ndarray, folds: Mapping[str, int]
) -> dict[str, dict[str, Interval]]:
    """`named_intervals` of everything in ``ranks`` (the first is the first protocol's), by what
    stands before the metrics' names in the results of ``split``."""
    found = {}
    first = next(iter(ranks), "")
    for name in (name for name in ranks if not name.endswith("/within")):
        *variant, protocol = name.split("/")
        place = "".join(f"{part}/" for part in (split, *variant, protocol) if part != first)
        fold = folds.get(protocol)
        found[place] = named_intervals([ranks], name, text_to_image, fold)
    return found


def _blocks(n_images: int, fold: int | None) -> list[slice]:
    size = fold or n_images
    return [slice(start, start + size) for start in range(0, n_images, size)]


def _hits(ranks: Ranks, text_to_image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By image: hits at each cut-off of itself [N, 1 + K] (the first column: was it asked) and of
    its captions [N, K], and how many captions were asked [N]."""
    cut = np.array(RECALLS)
    there = np.isfinite(ranks.i2t)
    image_hits = np.column_stack([there, (ranks.i2t[:, None] <= cut) & there[:, None]])
    asked = np.isfinite(ranks.t2i)
    own, size = np.asarray(text_to_image), len(ranks.i2t)
    found = [np.bincount(own, weights=(ranks.t2i <= k) & asked, minlength=size) for k in RECALLS]
    counts = np.bincount(own, weights=asked, minlength=size)
    return image_hits.astype(float), np.stack(found, axis=1), counts


def _recalls(
    weights: np.ndarray, image_hits: np.ndarray, caption_hits: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """[S, 7]: the recalls and rSum of images counted ``weights`` [S, N] times."""
    i2t = weights @ image_hits
    with np.errstate(invalid="ignore", divide="ignore"):
        both = np.concatenate(
            [i2t[:, 1:] / i2t[:, :1], (weights @ caption_hits) / (weights @ asked)[:, None]], axis=1
        )
    return 100 * np.concatenate([both, both.sum(axis=1, keepdims=True)], axis=1)


# Several seeds


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of a sample, n - 1) of one number over seeds; one: no spread."""
    numbers = np.asarray(values, dtype=float)
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return float(numbers.mean()), deviation


# Two runs on the same queries


@dataclass(frozen=True)
class Paired:
    """One metric of two runs, A and B."""

    a: float
    b: float
    wins: int  # queries that only B gets right
    losses: int  # queries that only A gets right
    p: float  # of a difference at least this large if A and B were exchangeable

    @property
    def difference(self) -> float:
        """B less A, in points."""
        return self.b - self.a


def compare_ranks(
    a: Ranks, b: Ranks, text_to_image: np.ndarray, seed: int = 0, resamples: int = 10_000
) -> dict[str, Paired]:
    """Every R@K, rSum, and ``i2t_rank``, ``t2i_rank`` (mean rank), B against A, query by query.

    The test of recalls exchanges A and B image by image, captions together (a sign-flip permutation
    test, two-sided; for one query an image it is McNemar's). Ranks: Wilcoxon's signed-rank test
    of each image's mean difference, not given where a match lies behind the candidates that were
    re-ranked. Wins and losses count queries. Raises DataError if one of the two was asked other
    queries than the other.
    """
    for way in ("i2t", "t2i"):
        first, second = getattr(a, way), getattr(b, way)
        if first.shape != second.shape or (np.isnan(first) != np.isnan(second)).any():
            raise DataError(
                f"the two runs answered other {way} queries ({np.isfinite(first).sum()} and "
                f"{np.isfinite(second).sum()}); evaluate both on the same split and protocol"
            )
    hits_a, hits_b = _hits(a, text_to_image), _hits(b, text_to_image)
    n_images, asked = hits_a[0][:, 0].sum(), hits_a[2].sum()
    scale = 100 / np.array([n_images] * len(RECALLS) + [asked] * len(RECALLS))
    each = np.concatenate([hits_b[0][:, 1:] - hits_a[0][:, 1:], hits_b[1] - hits_a[1]], axis=1)
    each = each * scale
    each = np.concatenate([each, each.sum(axis=1, keepdims=True)], axis=1)  # [N, 7] points
    p = _sign_flips(each, np.random.default_rng(seed), resamples)
    found: dict[str, Paired] = {}
    one = np.ones((1, len(each)))
    values = [_recalls(one, *hits)[0] for hits in (hits_a, hits_b)]
    counts = _wins_and_losses(a, b)
    for i, name in enumerate(METRICS):
        wins, losses = counts[name]
        found[name] = Paired(values[0][i], values[1][i], wins, losses, p[i])
    return {**found, **_mean_ranks(a, b, text_to_image)}


def _sign_flips(each: np.ndarray, rng: np.random.Generator, resamples: int) -> list[float]:
    """Two-sided p of the sums of ``each`` [N, M] under random signs of its rows."""
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
    for way in ("i2t", "t2i"):
        first, second = getattr(a, way), getattr(b, way)
        for k in RECALLS:
            wins, losses = (second <= k) & (first > k), (first <= k) & (second > k)
            counts[f"{way}_r{k}"] = int(wins.sum()), int(losses.sum())
    wins, losses = np.array(list(counts.values())).sum(axis=0)
    return {**counts, "rsum": (int(wins), int(losses))}


def _mean_ranks(a: Ranks, b: Ranks, text_to_image: np.ndarray) -> dict[str, Paired]:
    found = {}
    for way, owner in (("i2t", np.arange(len(a.i2t))), ("t2i", np.asarray(text_to_image))):
        if a.beyond(way).any() or b.beyond(way).any():
            continue  # a match behind the re-ranked candidates has no rank
        first, second = getattr(a, way), getattr(b, way)
        there = np.isfinite(first)
        difference, owner = (second - first)[there], owner[there]
        sums = np.bincount(owner, weights=difference, minlength=len(a.i2t))
        sums = sums[sums != 0]
        p = float(stats.wilcoxon(sums).pvalue) if len(sums) else 1.0
        found[f"{way}_rank"] = Paired(
            float(first[there].mean()),
            float(second[there].mean()),
            int((difference < 0).sum()),
            int((difference > 0).sum()),
            p,
        )
    return found


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for having tested all of ``p`` (Holm 1979)."""
    ordered, adjusted, floor = sorted(p, key=lambda name: p[name]), {}, 0.0
    for place, name in enumerate(ordered):
        floor = max(floor, min(1.0, p[name] * (len(ordered) - place)))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p}
