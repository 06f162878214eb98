"""Computes the metrics of every protocol from scores. N images, C captions, Q queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.data.layouts.precomp_ids import ANNOTATIONS
from itr.evaluation.ground_truths import QueryPositives, index_positives
from itr.evaluation.map_at_r import map_at_r_metrics, positive_ranks
from itr.evaluation.metrics import rank_metrics, retrieval_metrics, sums
from itr.evaluation.protocols import Protocol
from itr.evaluation.ranks import Matches, Ranks, check_text_to_image, count_ranks, rank_table
from itr.evaluation.retrieval_set import RetrievalSet, Subset
from itr.evaluation.score_tables import EmbeddingTable, MatrixTable, ScoreTable

WITHIN_MODALITY = ("i2i", "t2t")  # query and candidates are of the same kind
TableOf = Callable[[Subset], ScoreTable]


@dataclass(frozen=True)
class _Measurement:
    """The metrics of one protocol, and the ranks by name that they were computed from."""

    metrics: dict[str, Any]
    ranks: dict[str, Ranks] = field(default_factory=dict)


def evaluate_protocols(
    table_of: TableOf,
    retrieval_set: RetrievalSet,
    protocols: Sequence[Protocol],
    tie_break: str = "pessimistic",
    ranks_by_name: dict[str, Ranks] | None = None,
) -> dict[str, Any]:
    """Compute flat metrics of every protocol; ``table_of`` returns the scores of a subset.

    The first protocol's metrics have plain names (``rsum``). Those of every other protocol start
    with its name (``coco_1k_5fold/rsum``). Each protocol also reports ``n_images``, ``n_captions``
    (over all folds), ``captions`` (the caption policy), ``folds`` if it averages over folds, and
    for a ground truth which directions were skipped or use first-stage scores.

    The ranks of all queries are added to ``ranks_by_name``, if given: ``<protocol>`` for image-text
    retrieval and ``<protocol>/within`` for retrieval within a modality. NaN marks an image or
    caption that is not a query. Raises as `check_text_to_image` and `rank_table`. The protocols
    must be compatible with ``retrieval_set``.
    """
    text_to_image = retrieval_set.text_to_image
    check_text_to_image(text_to_image, retrieval_set.n_images, len(text_to_image))
    results: dict[str, Any] = {}
    for position, protocol in enumerate(protocols):
        subsets = list(retrieval_set.subsets(protocol))
        measure = _by_caption if protocol.ground_truth is None else _by_ground_truth
        measurement = measure(table_of, subsets, retrieval_set, protocol, tie_break)
        if ranks_by_name is not None:
            ranks_by_name |= measurement.ranks
        images = np.arange(retrieval_set.n_images)
        metrics = measurement.metrics | {
            "n_images": sum(len(images[subset.images]) for subset in subsets),
            "n_captions": sum(len(subset.text_to_image) for subset in subsets),
            "captions": protocol.caption_policy,
        }
        if protocol.fold is not None:
            metrics["folds"] = len(subsets)
        prefix = f"{protocol.name}/" if position else ""
        results |= {f"{prefix}{key}": value for key, value in metrics.items()}
    return results


def _by_caption(
    table_of: TableOf,
    subsets: Sequence[Subset],
    retrieval_set: RetrievalSet,
    protocol: Protocol,
    tie_break: str,
) -> _Measurement:
    """The mean over ``subsets``, where a caption matches its own image alone."""
    ranks = [rank_table(table_of(subset), subset.text_to_image, tie_break) for subset in subsets]
    metrics = [retrieval_metrics(each) for each in ranks]
    i2t, t2i = _unranked(retrieval_set)
    for subset, each in zip(subsets, ranks, strict=True):
        i2t[subset.images], t2i[subset.captions] = each.i2t, each.t2i
    means = {key: float(np.mean([each[key] for each in metrics])) for key in metrics[0]}
    return _Measurement(means, {protocol.name: Ranks(i2t, t2i, ranks[0].depth)})


def _unranked(retrieval_set: RetrievalSet) -> tuple[np.ndarray, np.ndarray]:
    """NaN for every image [N] and every caption [C]."""
    n_captions = len(retrieval_set.text_to_image)
    return np.full(retrieval_set.n_images, np.nan), np.full(n_captions, np.nan)


def _by_ground_truth(
    table_of: TableOf,
    subsets: Sequence[Subset],
    retrieval_set: RetrievalSet,
    protocol: Protocol,
    tie_break: str,
) -> _Measurement:
    """The metrics of the single subset, with the matches of the protocol's ground truth."""
    assert retrieval_set.image_ids is not None and retrieval_set.caption_ids is not None
    assert protocol.ground_truth is not None
    (subset,) = subsets
    table = table_of(subset)
    positives = retrieval_set.ground_truth(protocol.ground_truth).positives
    indices = {
        "i": np.arange(retrieval_set.n_images)[subset.images],
        "t": np.arange(len(retrieval_set.text_to_image))[subset.captions],
    }
    ids = {
        "i": retrieval_set.image_ids[indices["i"]],
        "t": retrieval_set.caption_ids[indices["t"]],
    }
    across, within = _unranked(retrieval_set), _unranked(retrieval_set)
    best_ranks = {"i2t": across[0], "t2i": across[1], "i2i": within[0], "t2t": within[1]}
    measured = [d for d in positives if table.within_modality or d not in WITHIN_MODALITY]
    metrics: dict[str, Any] = {}
    for direction in measured:
        queries, candidates = direction[0], direction[-1]
        matches = index_positives(positives[direction], ids[queries], ids[candidates])
        measure = map_at_r if protocol.ground_truth == "eccv" else recall_at_k
        values, best = measure(table, direction, matches, tie_break)
        metrics |= {f"{direction}_{key}": value for key, value in values.items()}
        best_ranks[direction][indices[queries][matches.queries]] = best
    ranks = {protocol.name: Ranks(*across, table.depth)}
    if any(direction in measured for direction in WITHIN_MODALITY):
        ranks[f"{protocol.name}/within"] = Ranks(*within)
        if table.depth is not None:
            metrics["within_modality"] = "first stage"
    if protocol.ground_truth == "cxc":
        metrics |= _skipped_directions(measured, table)
    return _Measurement(metrics | sums(metrics), ranks)


def _skipped_directions(measured: Sequence[str], table: ScoreTable) -> dict[str, str]:
    skipped = [direction for direction in WITHIN_MODALITY if direction not in measured]
    if not skipped:
        return {}
    files = ", ".join(f"{ANNOTATIONS}/cxc_{direction}.json" for direction in skipped)
    reason = f"no {files}" if table.within_modality else "only image-text scores are available"
    return {"directions_skipped": f"{', '.join(skipped)} ({reason})"}


def recall_at_k(
    table: ScoreTable,
    direction: str,
    positives: QueryPositives,
    tie_break: str,
    self_score: float = -torch.inf,
) -> tuple[dict[str, float], np.ndarray]:
    """`rank_metrics` over the queries of ``positives``, and the rank [Q] of each one's best
    positive.

    Within a modality (``i2i``, ``t2t``) the score of a query with itself is set to ``self_score``.
    """
    scores = table.in_direction(direction)
    queries = torch.from_numpy(positives.queries).to(table.device)
    matches = Matches.of(positives.rows, positives.columns, len(queries), table.device)

    def tile(start: int, stop: int) -> Tensor:
        values = scores.of(queries[start:stop])
        if direction in WITHIN_MODALITY:
            rows = torch.arange(len(values), device=table.device)
            values[rows, queries[start:stop]] = self_score
        return values

    with torch.inference_mode():
        ranks = count_ranks(tile, scores.n_candidates, matches, tie_break, table.tile)
    return rank_metrics(ranks, _depth(table, direction)), ranks


def map_at_r(
    table: ScoreTable, direction: str, positives: QueryPositives, tie_break: str
) -> tuple[dict[str, float], np.ndarray]:
    """`map_at_r_metrics` over the queries of ``positives``, and the rank [Q] of each one's best
    positive."""
    scores = table.in_direction(direction)
    ranks, order = positive_ranks(
        lambda rows: scores.of(rows.to(table.device)),
        positives,
        table.tile_rows(scores.n_candidates),
        tie_break,
    )
    depth = _depth(table, direction)
    return map_at_r_metrics(ranks, order, positives, depth), ranks[order == 1]


def _depth(table: ScoreTable, direction: str) -> int | None:
    """How many candidates of a query were ordered; None: all."""
    if table.depth is None or direction in WITHIN_MODALITY:
        return None
    return table.depth if table.depth < table.in_direction(direction).n_candidates else None


def evaluate_embeddings(
    images: Tensor,
    texts: Tensor,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    tie_break: str = "pessimistic",
    ranks_by_name: dict[str, Ranks] | None = None,
) -> dict[str, Any]:
    """`evaluate_protocols` on the dot products of ``images`` [N, D] and ``texts`` [C, D]."""
    table = EmbeddingTable(images, texts)
    return evaluate_table(table, text_to_image, protocols, tie_break, ranks_by_name)


def evaluate_scores(
    scores: np.ndarray | Tensor,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    tie_break: str = "pessimistic",
) -> dict[str, Any]:
    """`evaluate_protocols` on a score matrix [N, C]."""
    return evaluate_table(MatrixTable(scores), text_to_image, protocols, tie_break)


def evaluate_table(
    table: ScoreTable,
    text_to_image: Any,
    protocols: Sequence[Protocol],
    tie_break: str = "pessimistic",
    ranks_by_name: dict[str, Ranks] | None = None,
) -> dict[str, Any]:
    """`evaluate_protocols` on a table of all images and captions, without dataset ids."""
    owner = check_text_to_image(text_to_image, table.n_images, table.n_captions)
    retrieval_set = RetrievalSet(owner, table.n_images)
    return evaluate_protocols(
        lambda subset: table.subset(subset.images, subset.captions),
        retrieval_set,
        protocols,
        tie_break,
        ranks_by_name,
    )
