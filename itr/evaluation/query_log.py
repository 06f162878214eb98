"""Per-query results of an evaluation: ranks by protocol, best candidates, score statistics.

They are saved next to ``results.json``, so that confidence intervals, comparisons and gallery pages
need no second evaluation. N images, C captions, Q queries and M candidates of a direction, k of
them saved, T queries per tile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from itr import files
from itr.array_files import read_arrays
from itr.errors import DataError
from itr.evaluation.protocols import Protocol
from itr.evaluation.ranks import Ranks
from itr.evaluation.retrieval_set import RetrievalSet
from itr.evaluation.score_tables import ScoreTable
from itr.files import parse_json

CANDIDATES_SAVED = 10  # per query
CURVE_RANKS = 50  # length of the mean-score curve
BINS = 400  # of the score histograms
LARGEST = torch.finfo(torch.float32).max
DIRECTIONS = ("i2t", "t2i")
JSON_FIELDS = ("metadata", "folds", "depths")
ARRAYS = ("text_to_image", "image_ids", "caption_ids", "bin_edges", "match_counts",
          "nonmatch_counts")  # fmt: skip


class TopCandidates(NamedTuple):
    """The best candidates of each query of one direction, and the scores of its matches."""

    candidates: np.ndarray  # [Q, k] int32, best first
    scores: np.ndarray  # [Q, k] float32
    match_score: np.ndarray  # [Q] float32, of the best match; NaN if no match was scored
    match_index: np.ndarray  # [Q] int32, candidate index of the best match (else the first match)
    mean_score_by_rank: np.ndarray  # [R] float32, of the candidates at rank 1, 2, ...


@dataclass
class QueryLog:
    """Every query of one evaluated split."""

    text_to_image: np.ndarray  # [C] int64
    image_ids: np.ndarray  # [N] int64, the dataset's ids
    caption_ids: np.ndarray  # [C] int64
    ranks: dict[str, Ranks]  # by protocol; float64, NaN: not a query of the protocol
    folds: dict[str, int]  # images per fold, of protocols that average over folds
    # Ranks that the gallery page does not use: of protocols with a ground truth (``cxc``, ``eccv``;
    # ``cxc/within``: retrieval within a modality) and of rows beside the main result
    # (``first_stage/full``, ``member_1/full``, ``hubness_csls/full``).
    extra_ranks: dict[str, Ranks]
    top_candidates: dict[str, TopCandidates]  # by direction, over the whole split
    bin_edges: np.ndarray  # [BINS + 1] float32
    match_counts: np.ndarray  # [BINS] int64, histogram of the scores of matching pairs
    nonmatch_counts: np.ndarray  # [BINS] int64, of all other scored pairs
    metadata: dict[str, Any] = field(default_factory=dict)  # see `save`

    def save(self, folder: Path, split: str, metadata: Mapping[str, Any]) -> Path:
        """Write ``queries-<split>.npz`` to ``folder`` atomically; returns the path.

        ``metadata`` (JSON) is what the gallery needs in addition: ``checkpoints``,
        ``model_options`` (the user's, for an authors' checkpoint), ``kind`` of the view and
        ``data`` (its resolved options). Raises TrainingError if the file cannot be written.
        """
        path = query_log_path(folder, split)
        depths = {name: ranks.depth for name, ranks in self.all_ranks.items()}
        arrays: dict[str, Any] = {
            "metadata": np.array(json.dumps({**metadata, "split": split})),
            "folds": np.array(json.dumps(self.folds)),
            "depths": np.array(json.dumps(depths)),
            **{name: getattr(self, name) for name in ARRAYS},
        }
        for kind, named in (("ranks", self.ranks), ("extra_ranks", self.extra_ranks)):
            for name, ranks in named.items():
                arrays |= {f"{kind}/{name}/{way}": getattr(ranks, way) for way in DIRECTIONS}
        for direction, top in self.top_candidates.items():
            arrays |= {f"top/{direction}/{key}": value for key, value in top._asdict().items()}
        with files.explain_write_error(path, "the queries"), files.atomic_write(path) as file:
            np.savez_compressed(file, **arrays)
        return path

    @property
    def all_ranks(self) -> dict[str, Ranks]:
        """``ranks`` and ``extra_ranks``."""
        return self.ranks | self.extra_ranks


def query_log_path(folder: Path, split: str) -> Path:
    """Path of the query log of ``split`` in ``folder``."""
    return Path(folder) / f"queries-{split}.npz"


def read_queries(folder: Path, split: str = "test") -> QueryLog:
    """Read what `QueryLog.save` wrote.

    Raises DataError, naming the file, if it does not exist or cannot be read.
    """
    path = query_log_path(folder, split)
    command = f"python eval.py checkpoint={folder} split={split} out={folder}-{split}"
    try:
        return _checked(_from_arrays(read_arrays(path)))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; expected the ranks of every query, which an evaluation "
            f"writes: {command}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"holds no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: cannot be read ({what}); write it again: {command}") from error


def _from_arrays(arrays: dict[str, np.ndarray]) -> QueryLog:
    metadata, folds, depths = (parse_json(str(arrays[name])) for name in JSON_FIELDS)

    def named_ranks(kind: str) -> dict[str, Ranks]:
        names = [n.removesuffix("/i2t") for n in arrays if n.startswith(f"{kind}/")]
        names = [n.removeprefix(f"{kind}/") for n in names if not n.endswith("/t2i")]
        pairs = {n: [arrays[f"{kind}/{n}/{way}"] for way in DIRECTIONS] for n in names}
        return {n: Ranks(i2t, t2i, depths[n]) for n, (i2t, t2i) in pairs.items()}

    top = {
        direction: TopCandidates(
            *(arrays[f"top/{direction}/{key}"] for key in TopCandidates._fields)
        )
        for direction in DIRECTIONS
    }
    return QueryLog(
        ranks=named_ranks("ranks"),
        extra_ranks=named_ranks("extra_ranks"),
        top_candidates=top,
        folds=folds,
        metadata=metadata,
        **{name: arrays[name] for name in ARRAYS},
    )


def _checked(log: QueryLog) -> QueryLog:
    """``log`` if its parts fit each other. Raises ValueError that names one that does not."""
    images, captions = len(log.image_ids), len(log.caption_ids)
    sizes = {"i2t": (images, captions), "t2i": (captions, images)}  # queries, candidates
    _require("ids", log.image_ids, "iu", (images,))
    _require("ids", log.caption_ids, "iu", (captions,))
    _require("text_to_image", log.text_to_image, "iu", (captions,), -1, images)
    for name, ranks in log.all_ranks.items():
        for way, (queries, _) in sizes.items():
            _require(f"ranks/{name}/{way}", getattr(ranks, way), "iuf", (queries,))
        if not isinstance(ranks.depth, int | None):
            raise ValueError(f"depths: {ranks.depth!r} of {name}")
    for way, (queries, candidates) in sizes.items():
        top, where = log.top_candidates[way], f"top/{way}"
        _require(where, top.candidates, "iu", (queries, None), 0, candidates)
        _require(where, top.scores, "f", top.candidates.shape)
        _require(where, top.match_score, "f", (queries,))
        _require(where, top.match_index, "iu", (queries,), 0, candidates)
        _require(where, top.mean_score_by_rank, "f", (None,))
    bins = len(log.match_counts)
    _require("bin_edges", log.bin_edges, "f", (bins + 1,))
    for counts in (log.match_counts, log.nonmatch_counts):
        _require("histogram", counts, "iu", (bins,), 0)
    if not all(isinstance(fold, int) and fold > 0 for fold in log.folds.values()):
        raise ValueError(f"folds: {log.folds}")
    _check_metadata(log.metadata)
    return log


def _check_metadata(metadata: dict[str, Any]) -> None:
    """Raise ValueError unless the values have the types that a gallery relies on."""
    checkpoints = metadata.get("checkpoints", [])
    fits = {
        "checkpoints": isinstance(checkpoints, list)
        and all(isinstance(path, str) for path in checkpoints),
        "model_options": isinstance(metadata.get("model_options"), dict | None),
        "rerank_k": isinstance(metadata.get("rerank_k"), int | None),
        "kind": metadata.get("kind") in ("pixels", "regions", None),
        "data": isinstance(metadata.get("data"), dict | None),
    }
    if wrong := [key for key, fit in fits.items() if not fit]:
        raise ValueError(f"metadata: {wrong[0]} is {str(metadata[wrong[0]])[:60]!r}")


def _require(
    name: str,
    array: np.ndarray,
    kinds: str,
    shape: tuple[int | None, ...],
    low: int | None = None,
    below: int | None = None,
) -> None:
    """Raise ValueError unless ``array`` has a dtype of ``kinds``, ``shape`` and that range."""
    fits = array.ndim == len(shape) and all(
        size in (None, found) for size, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype.kind not in kinds or not fits:
        raise ValueError(f"{name}: {array.dtype} of shape {array.shape}, expected {shape}")
    if array.size and low is not None and array.min() < low:
        raise ValueError(f"{name}: holds {array.min()}")
    if array.size and below is not None and array.max() >= below:
        raise ValueError(f"{name}: holds {array.max()}, expected less than {below}")


# Building a query log


def build_query_log(
    table: ScoreTable,
    retrieval_set: RetrievalSet,
    protocols: Sequence[Protocol],
    ranks: dict[str, Ranks],
) -> QueryLog:
    """The query log of a ``table`` of the whole split and the ``ranks`` that `evaluate_protocols`
    collected (by protocol, and any that ``extra_ranks`` may hold).

    Without dataset ids, images and captions are numbered from 0.
    """
    ids = retrieval_set.image_ids, retrieval_set.caption_ids
    counts = table.n_images, table.n_captions
    image_ids, caption_ids = (
        np.arange(count) if each is None else each for each, count in zip(ids, counts, strict=True)
    )
    main = [protocol.name for protocol in protocols if protocol.ground_truth is None]
    return QueryLog(
        text_to_image=np.asarray(retrieval_set.text_to_image, dtype=np.int64),
        image_ids=image_ids,
        caption_ids=caption_ids,
        ranks={name: each for name, each in ranks.items() if name in main},
        extra_ranks={name: each for name, each in ranks.items() if name not in main},
        folds={protocol.name: protocol.fold for protocol in protocols if protocol.fold},
        **vars(score_statistics(table, retrieval_set.text_to_image)),
    )


@dataclass
class ScoreStatistics:
    """Best candidates and score histograms of a split; the fields are those of `QueryLog`."""

    top_candidates: dict[str, TopCandidates]
    bin_edges: np.ndarray
    match_counts: np.ndarray
    nonmatch_counts: np.ndarray


def score_statistics(table: ScoreTable, text_to_image: Any) -> ScoreStatistics:
    """Best candidates in both directions, and histograms of all image-text scores."""
    owner = torch.as_tensor(np.asarray(text_to_image), dtype=torch.int64).to(table.device)
    with torch.inference_mode():
        limits = _score_limits(table)
        histogram = _Histogram(limits)
        images = torch.arange(table.n_images, device=table.device)
        top = {
            "i2t": _top_candidates(table, "i2t", lambda rows: images[rows, None] == owner[None]),
            "t2i": _top_candidates(
                table, "t2i", lambda rows: owner[rows, None] == images[None], histogram
            ),
        }
    edges = np.linspace(*limits, BINS + 1, dtype=np.float32)
    return ScoreStatistics(top, edges, histogram.matches, histogram.all - histogram.matches)


def _tiles(table: ScoreTable, direction: str) -> Iterator[tuple[slice, Tensor]]:
    scores = table.in_direction(direction)
    step = table.tile_rows(scores.n_candidates)
    for start in range(0, scores.n_queries, step):
        rows = slice(start, min(start + step, scores.n_queries))
        yield rows, _as_float32(scores.of(rows))


def _as_float32(values: Tensor) -> Tensor:
    """Finite ``values`` stay finite, as the nearest that float32 has."""
    if values.dtype == torch.float64:
        inside = values.clamp(-LARGEST, LARGEST)
        values = torch.where(values.isinf(), values, inside)
    return values.float()


def _score_limits(table: ScoreTable) -> tuple[float, float]:
    """Lowest and highest score, with a small margin."""
    low, high = torch.inf, -torch.inf
    for _, values in _tiles(table, "t2i"):
        high = max(high, float(values.max()))
        low = min(low, float(values.masked_fill(values == -torch.inf, torch.inf).min()))
    margin = 1e-5 * max(1.0, abs(low), abs(high))
    return max(low - margin, -LARGEST), min(high + margin, LARGEST)


class _Histogram:
    """Histograms of all scores and of the scores of matches; -inf (not scored) is ignored."""

    def __init__(self, limits: tuple[float, float]):
        self.limits = limits
        self.all, self.matches = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)

    def add(self, values: Tensor, is_match: Tensor) -> None:
        """Count ``values`` [T, M]; ``is_match`` [T, M] is the mask of matching pairs."""
        self.all += self._count(values)
        self.matches += self._count(values[is_match])

    def _count(self, values: Tensor) -> np.ndarray:
        low, high = self.limits
        finite = values[values > -torch.inf].cpu()
        if high - low > LARGEST:  # float32 would overflow
            finite = finite.double()
        return torch.histc(finite, BINS, low, high).long().numpy()


def _top_candidates(
    table: ScoreTable,
    direction: str,
    matches_of: Callable[[slice], Tensor],
    histogram: _Histogram | None = None,
) -> TopCandidates:
    """The `TopCandidates` of ``direction``; ``matches_of(rows)`` is the mask [T, M] of matches."""
    candidates, scores, match_scores, match_indices, curves = [], [], [], [], []
    for rows, values in _tiles(table, direction):
        depth = min(CURVE_RANKS, table.depth or CURVE_RANKS, values.shape[1])
        best = values.topk(depth, dim=1)
        candidates.append(best.indices[:, :CANDIDATES_SAVED].int().cpu().numpy())
        scores.append(best.values[:, :CANDIDATES_SAVED].cpu().numpy())
        curves.append(best.values.double().sum(dim=0).cpu())
        is_match = matches_of(rows)
        of_matches = values.masked_fill(~is_match, -torch.inf)
        best_match = of_matches.amax(dim=1)
        unscored = best_match == -torch.inf
        index = torch.where(unscored[:, None], is_match.float(), of_matches).argmax(dim=1)
        match_indices.append(index.int().cpu().numpy())
        match_scores.append(best_match.masked_fill(unscored, torch.nan).cpu().numpy())
        if histogram is not None:
            histogram.add(values, is_match)
    curve = torch.stack(curves).sum(dim=0) / sum(len(tile) for tile in candidates)
    return TopCandidates(
        np.concatenate(candidates),
        np.concatenate(scores),
        np.concatenate(match_scores).astype(np.float32),
        np.concatenate(match_indices),
        curve[curve > -torch.inf].float().numpy(),
    )
