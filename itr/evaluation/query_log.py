"""Per-query results of an evaluation: ranks by protocol, best candidates, score statistics.

They are saved next to ``results.json``, so that confidence intervals, comparisons and gallery pages
need no second evaluation. N images, C captions, Q queries and M candidates of a direction, k of
them saved, T queries per tile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itr import files
from itr.array_files import read_arrays
from itr.errors import DataError
from itr.evaluation.protocols import Protocol
from itr.evaluation.ranks import Ranks
from itr.evaluation.retrieval_set import RetrievalSet
from itr.evaluation.score_statistics import StatisticsCollector, TopCandidates
from itr.evaluation.score_tables import ScoreTable
from itr.files import parse_json

DIRECTIONS = ("i2t", "t2i")
JSON_FIELDS = ("metadata", "folds", "depths")
ARRAYS = ("text_to_image", "image_ids", "caption_ids", "bin_edges", "match_counts",
          "nonmatch_counts")  # fmt: skip


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
        "rerank_checkpoint": isinstance(metadata.get("rerank_checkpoint"), str | None),
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
    collected: StatisticsCollector | None = None,
) -> QueryLog:
    """The query log of a ``table`` of the whole split and the ``ranks`` that `evaluate_protocols`
    collected (by protocol, and any that ``extra_ranks`` may hold).

    ``collected`` has seen the scores of ``table`` while they were ranked; what it has not seen is
    computed here.
    Without dataset ids, images and captions are numbered from 0.
    """
    ids = retrieval_set.image_ids, retrieval_set.caption_ids
    counts = table.n_images, table.n_captions
    image_ids, caption_ids = (
        np.arange(count) if each is None else each for each, count in zip(ids, counts, strict=True)
    )
    collected = collected or StatisticsCollector(table, retrieval_set.text_to_image)
    main = [protocol.name for protocol in protocols if protocol.ground_truth is None]
    return QueryLog(
        text_to_image=np.asarray(retrieval_set.text_to_image, dtype=np.int64),
        image_ids=image_ids,
        caption_ids=caption_ids,
        ranks={name: each for name, each in ranks.items() if name in main},
        extra_ranks={name: each for name, each in ranks.items() if name not in main},
        folds={protocol.name: protocol.fold for protocol in protocols if protocol.fold},
        **vars(collected.finish()),
    )
