"""Which queries are worth a look, and what the model answered. Q queries, k candidates kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from itr.evaluation.query_log import QueryLog

SHOWN = 5  # candidates a query


@dataclass(frozen=True)
class Candidate:
    """One answer: an image number (t2i) or a caption number (i2t)."""

    number: int
    rank: int
    score: float | None  # None: it was not among those that were scored
    right: bool


@dataclass(frozen=True)
class Case:
    """A query, its rank under the protocol, its best candidates and its best match."""

    way: str  # i2t | t2i
    query: int  # an image number (i2t) or a caption number (t2i)
    rank: float
    candidates: tuple[Candidate, ...]
    truths: tuple[int, ...]  # all right candidates
    match: float | None  # score of the best one
    best: int  # which one that is


Choice = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def worst(ranks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Queries by falling rank."""
    order = np.argsort(-np.nan_to_num(ranks, nan=-1), kind="stable")
    return order[np.isfinite(ranks[order])]


def near_misses(ranks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Queries whose match came second or third, in random order."""
    return rng.permutation(np.flatnonzero((ranks > 1) & (ranks <= 3)))


def sample(ranks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All queries in random order."""
    return rng.permutation(np.flatnonzero(np.isfinite(ranks)))


CHOICES: dict[str, Choice] = {"worst": worst, "near": near_misses, "sample": sample}


def choose(
    log: QueryLog, protocol: str, way: str, choice: str, count: int, seed: int = 0
) -> list[Case]:
    """At most ``count`` queries of the direction ``way``, chosen as `CHOICES` says.

    Of captions that share an image only the first is taken.
    """
    ranks = getattr(log.ranks[protocol], way)
    order = CHOICES[choice](ranks, np.random.default_rng(seed))
    cases: list[Case] = []
    images: set[int] = set()
    for query in map(int, order):
        image = query if way == "i2t" else int(log.text_to_image[query])
        if image in images:
            continue
        images.add(image)
        cases.append(_case(log, way, query, float(ranks[query])))
        if len(cases) == count:
            break
    return cases


def _case(log: QueryLog, way: str, query: int, rank: float) -> Case:
    answers, owner = log.top_candidates[way], log.text_to_image
    if way == "i2t":
        truths = tuple(int(i) for i in np.flatnonzero(owner == query))
    else:
        truths = (int(owner[query]),)
    candidates = tuple(
        Candidate(int(number), place + 1, float(score), int(number) in truths)
        for place, (number, score) in enumerate(
            zip(answers.candidates[query][:SHOWN], answers.scores[query][:SHOWN], strict=True)
        )
    )
    match = float(answers.match_score[query])
    return Case(
        way,
        query,
        rank,
        candidates,
        truths,
        None if np.isnan(match) else match,
        int(answers.match_index[query]),
    )


def hubs(log: QueryLog, way: str, count: int = 5) -> tuple[float, list[tuple[int, int]]]:
    """Hubness: skewness of how often each candidate is among the kept answers (Radovanovic et al.,
    JMLR 2010), and the most frequent ones as (candidate, times)."""
    answers = log.top_candidates[way]
    total = len(log.image_ids) if way == "t2i" else len(log.caption_ids)
    times = np.bincount(answers.candidates.ravel(), minlength=total)
    spread = times.std()
    skewness = float((((times - times.mean()) / spread) ** 3).mean()) if spread else 0.0
    order = np.argsort(-times, kind="stable")[:count]
    return skewness, [(int(number), int(times[number])) for number in order]
