"""Selects queries for a gallery page, with their top candidates. Q queries, k candidates saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from itr.evaluation.query_log import QueryLog
from itr.evaluation.score_statistics import TopCandidates

CANDIDATES_SHOWN = 5  # per query


@dataclass(frozen=True)
class RankedCandidate:
    """A candidate of a query: an image (t2i) or a caption (i2t)."""

    index: int
    rank: int
    score: float | None  # None: it was not scored
    is_match: bool


@dataclass(frozen=True)
class QueryCase:
    """A query, its rank under the protocol, its top candidates and its matches."""

    direction: str  # i2t | t2i
    query: int  # image index (i2t) or caption index (t2i)
    rank: float
    candidates: tuple[RankedCandidate, ...]
    matches: tuple[int, ...]  # indices of all matching candidates
    match_score: float | None  # of the best match; None: it was not scored
    best_match: int


Selection = Callable[[np.ndarray, TopCandidates, np.random.Generator], np.ndarray]


def worst(ranks: np.ndarray, top: TopCandidates, rng: np.random.Generator) -> np.ndarray:
    """Query indices by descending rank.

    Of equal ranks (all that are beyond the re-ranked candidates) the most confident mistakes first:
    those whose best candidate leads the best match by most, or scores highest if no match has a
    score.
    """
    first = top.scores[:, 0].astype(np.float64)
    lead = np.where(np.isnan(top.match_score), first, first - top.match_score)
    order = np.lexsort((-np.nan_to_num(lead), -np.nan_to_num(ranks, nan=-1)))
    return order[np.isfinite(ranks[order])]


def near_misses(ranks: np.ndarray, top: TopCandidates, rng: np.random.Generator) -> np.ndarray:
    """Indices of the queries with rank 2 or 3, in random order."""
    return rng.permutation(np.flatnonzero((ranks > 1) & (ranks <= 3)))


def random_sample(ranks: np.ndarray, top: TopCandidates, rng: np.random.Generator) -> np.ndarray:
    """Indices of all queries in random order."""
    return rng.permutation(np.flatnonzero(np.isfinite(ranks)))


SELECTIONS: dict[str, Selection] = {
    "worst": worst,
    "near": near_misses,
    "sample": random_sample,
}


def choose(
    log: QueryLog, protocol: str, direction: str, selection: str, count: int, seed: int = 0
) -> list[QueryCase]:
    """At most ``count`` queries of ``direction``, selected by `SELECTIONS`.

    Only the first of several selected captions of an image is used.
    """
    ranks = getattr(log.ranks[protocol], direction)
    order = SELECTIONS[selection](ranks, log.top_candidates[direction], np.random.default_rng(seed))
    cases: list[QueryCase] = []
    images: set[int] = set()
    for query in map(int, order):
        image = query if direction == "i2t" else int(log.text_to_image[query])
        if image in images:
            continue
        images.add(image)
        cases.append(case_of(log, direction, query, float(ranks[query])))
        if len(cases) == count:
            break
    return cases


def case_of(log: QueryLog, direction: str, query: int, rank: float) -> QueryCase:
    """The query with its top candidates."""
    top, owner = log.top_candidates[direction], log.text_to_image
    if direction == "i2t":
        matches = tuple(int(i) for i in np.flatnonzero(owner == query))
    else:
        matches = (int(owner[query]),)
    shown = slice(CANDIDATES_SHOWN)
    pairs = zip(top.candidates[query][shown], top.scores[query][shown], strict=True)
    candidates = tuple(
        RankedCandidate(int(index), position + 1, float(score), int(index) in matches)
        for position, (index, score) in enumerate(pairs)
    )
    score = float(top.match_score[query])
    return QueryCase(
        direction,
        query,
        rank,
        candidates,
        matches,
        None if np.isnan(score) else score,
        int(top.match_index[query]),
    )


def hubs(log: QueryLog, direction: str, count: int = 5) -> tuple[float, list[tuple[int, int]]]:
    """Hubness: the skewness of how often each candidate is among the saved top candidates
    (Radovanovic et al., JMLR 2010), and the most frequent ones as (candidate, times)."""
    top = log.top_candidates[direction]
    total = len(log.image_ids) if direction == "t2i" else len(log.caption_ids)
    times = np.bincount(top.candidates.ravel(), minlength=total)
    deviation = times.std()
    skewness = float((((times - times.mean()) / deviation) ** 3).mean()) if deviation else 0.0
    order = np.argsort(-times, kind="stable")[:count]
    return skewness, [(int(index), int(times[index])) for index in order]
