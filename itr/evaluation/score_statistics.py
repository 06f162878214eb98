"""Best candidates of every query, and histograms of all scores, collected from tiles of scores.

The tiles are those that ranks are counted from, so that a query log needs no further products.
N images, C captions, Q queries and M candidates of a direction, P matches, T queries per tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr.evaluation.ranks import Matches, match_both_ways
from itr.evaluation.score_tables import Index, Rows, ScoreTable

CANDIDATES_SAVED = 10  # per query
CURVE_RANKS = 50  # length of the mean-score curve
BINS = 400  # of the score histograms
LARGEST = torch.finfo(torch.float32).max
EXACT = 2**24  # float32 counts up to here


class TopCandidates(NamedTuple):
    """The best candidates of each query of one direction, and the scores of its matches."""

    candidates: np.ndarray  # [Q, k] int32, best first
    scores: np.ndarray  # [Q, k] float32
    match_score: np.ndarray  # [Q] float32, of the best match; NaN if no match was scored
    match_index: np.ndarray  # [Q] int32, candidate index of the best match (else the first match)
    mean_score_by_rank: np.ndarray  # [R] float32, of the candidates at rank 1, 2, ...


@dataclass
class ScoreStatistics:
    """Best candidates and score histograms of a split."""

    top_candidates: dict[str, TopCandidates]  # by direction
    bin_edges: np.ndarray  # [BINS + 1] float32
    match_counts: np.ndarray  # [BINS] int64, of the scores of matching pairs
    nonmatch_counts: np.ndarray  # [BINS] int64, of all other scored pairs


class StatisticsCollector:
    """Collects the statistics of ``table``, whose captions belong to the images ``text_to_image``.

    Raises as `check_text_to_image`.
    """

    def __init__(self, table: ScoreTable, text_to_image: Any):
        self.table = table
        both = match_both_ways(text_to_image, table.n_images, table.n_captions, table.device)
        depth = min(CURVE_RANKS, table.depth or CURVE_RANKS)
        self.ways = {d: _Direction(m, depth) for d, m in zip(("i2t", "t2i"), both, strict=True)}
        self.limits = _Limits()
        self.histogram: _Histogram | None = None

    def add(self, direction: str, rows: Rows, scores: Tensor) -> None:
        """Take the tile ``scores`` [T, M] of the queries ``rows``, unless it was seen before.

        Tiles are taken in the order of the queries, images before captions; others are ignored.
        """
        way = self.ways.get(direction)
        if way is None or not isinstance(rows, slice) or rows.start != way.seen:
            return
        if direction == "t2i" and self.histogram is None:
            if not (self.table.symmetric and self.ways["i2t"].seen == self.table.n_images):
                return
            self.histogram = _Histogram(self.limits.with_margin())
        values = _as_float32(scores)
        matching = way.add(rows, values)
        if self.histogram is not None:
            self.histogram.add(values, matching)
        elif self.table.symmetric:
            self.limits.add(values)

    def watch(self) -> ScoreTable:
        """The table, whose tiles are collected whenever somebody computes them."""
        return _WatchedTable(self.table, self.add)

    @torch.inference_mode()
    def finish(self) -> ScoreStatistics:
        """The statistics; tiles that have not been seen are computed."""
        self._compute("i2t", self.add)
        if not self.table.symmetric:
            limits = _Limits()
            self._compute("t2i", lambda _, __, scores: limits.add(_as_float32(scores)))
            self.histogram = _Histogram(limits.with_margin())
        self._compute("t2i", self.add)
        assert self.histogram is not None
        edges = np.linspace(*self.histogram.limits, BINS + 1, dtype=np.float32)
        matches = self.histogram.matches
        return ScoreStatistics(
            {direction: way.result() for direction, way in self.ways.items()},
            edges,
            matches,
            self.histogram.all - matches,
        )

    def _compute(self, direction: str, take: Callable[[str, Rows, Tensor], None]) -> None:
        scores = self.table.in_direction(direction)
        step = self.table.tile_rows(scores.n_candidates)
        for start in range(self.ways[direction].seen, scores.n_queries, step):
            rows = slice(start, min(start + step, scores.n_queries))
            take(direction, rows, scores.of(rows))


class _WatchedTable(ScoreTable):
    """``base``; its tiles are also passed to ``watch(direction, rows, scores)``."""

    def __init__(self, base: ScoreTable, watch: Callable[[str, Rows, Tensor], None]):
        self.base, self.watch = base, watch
        self.n_images, self.n_captions, self.device = base.n_images, base.n_captions, base.device
        self.depth, self.within_modality = base.depth, base.within_modality
        self.symmetric = base.symmetric

    def scores(self, direction: str, rows: Rows) -> Tensor:
        """The scores of ``base``."""
        found = self.base.scores(direction, rows)
        self.watch(direction, rows, found)
        return found

    def subset(self, images: Index, captions: Index) -> ScoreTable:
        """This table if the subset is all of it, else the subset of ``base`` alone."""
        whole = all(isinstance(i, slice) and i == slice(None) for i in (images, captions))
        return self if whole else self.base.subset(images, captions)


class _Direction:
    """The best candidates of the queries of one direction, tile by tile."""

    def __init__(self, matches: Matches, depth: int):
        self.matches, self.depth, self.seen = matches, depth, 0
        self.candidates: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self.match_scores: list[np.ndarray] = []
        self.match_indices: list[np.ndarray] = []
        self.curve: Tensor | float = 0.0  # sums by rank

    def add(self, rows: slice, values: Tensor) -> Tensor:
        """Take the scores [T, M] of the queries ``rows``; returns those of their matches [P]."""
        best = values.topk(min(self.depth, values.shape[1]), dim=1)
        self.candidates.append(best.indices[:, :CANDIDATES_SAVED].int().cpu().numpy())
        self.scores.append(best.values[:, :CANDIDATES_SAVED].cpu().numpy())
        self.curve = self.curve + best.values.double().sum(dim=0).cpu()
        first = self.matches.first
        pairs = slice(int(first[rows.start]), int(first[rows.stop]))
        queries, columns = self.matches.rows[pairs] - rows.start, self.matches.columns[pairs]
        own = values[queries, columns]
        score = values.new_full((len(values),), -torch.inf)
        score.scatter_reduce_(0, queries, own, "amax")
        is_best = own == score[queries]
        none = values.shape[1]  # larger than any index
        index = torch.full_like(score, none, dtype=torch.int64)
        index.scatter_reduce_(0, queries[is_best], columns[is_best], "amin")
        self.match_indices.append(index.masked_fill(index == none, 0).int().cpu().numpy())
        unscored = score == -torch.inf
        self.match_scores.append(score.masked_fill(unscored, torch.nan).cpu().numpy())
        self.seen = rows.stop
        return own

    def result(self) -> TopCandidates:
        """What was collected."""
        assert isinstance(self.curve, Tensor)
        curve = self.curve / self.seen
        return TopCandidates(
            np.concatenate(self.candidates),
            np.concatenate(self.scores),
            np.concatenate(self.match_scores).astype(np.float32),
            np.concatenate(self.match_indices),
            curve[curve > -torch.inf].float().numpy(),
        )


class _Limits:
    """The lowest and the highest score; -inf (not scored) is ignored."""

    def __init__(self) -> None:
        self.low, self.high = torch.inf, -torch.inf

    def add(self, values: Tensor) -> None:
        low, high = (float(limit) for limit in values.aminmax())
        if low == -torch.inf:
            low = float(values.masked_fill(values == -torch.inf, torch.inf).min())
        self.low, self.high = min(self.low, low), max(self.high, high)

    def with_margin(self) -> tuple[float, float]:
        """Limits that also hold for the same scores from a product of another shape."""
        margin = 1e-5 * max(1.0, abs(self.low), abs(self.high))
        return max(self.low - margin, -LARGEST), min(self.high + margin, LARGEST)


class _Histogram:
    """Histograms of all scores and of the scores of matches; -inf (not scored) is ignored."""

    def __init__(self, limits: tuple[float, float]):
        self.limits = limits
        self.all, self.matches = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)

    def add(self, values: Tensor, matching: Tensor) -> None:
        """Count ``values`` [T, M], and ``matching`` [P] among them."""
        self.all += self._count(values)
        self.matches += self._count(matching)

    def _count(self, values: Tensor) -> np.ndarray:
        low, high = self.limits
        counts = np.zeros(BINS, np.int64)
        for part in values.flatten().cpu().split(EXACT):
            if high - low > LARGEST:  # float32 would overflow
                part = part.double()
            counts += torch.histc(part, BINS, low, high).long().numpy()
        return counts


def _as_float32(values: Tensor) -> Tensor:
    """Finite ``values`` stay finite, as the nearest that float32 has."""
    if values.dtype == torch.float64:
        inside = values.clamp(-LARGEST, LARGEST)
        values = torch.where(values.isinf(), values, inside)
    return values.float()
