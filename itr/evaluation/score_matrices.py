"""Evaluates score matrices, from memory or from a file. N images, C captions."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from itr.data.checks.fingerprint import DIGITS
from itr.errors import ConfigError, DataError
from itr.evaluation.hubness import HubnessConfig, hubness_rows
from itr.evaluation.protocol_metrics import evaluate_protocols
from itr.evaluation.protocols import Protocol, find_protocols
from itr.evaluation.query_log import QueryLog, build_query_log
from itr.evaluation.ranks import Ranks, check_text_to_image
from itr.evaluation.retrieval_set import RetrievalSet, applicable_protocols
from itr.evaluation.score_files import IDS, OWNERS, matrix_table, read_score_file
from itr.evaluation.score_statistics import StatisticsCollector
from itr.evaluation.score_tables import ScoreTable
from itr.evaluation.stored_embeddings import file_hash

UNKNOWN = "unknown"  # facts that a score file does not contain
log = logging.getLogger(__name__)

COCO_PROTOCOLS = (
    "coco_5k",
    "coco_1k_5fold",
    "coco_5k_first5",
    "coco_1k_5fold_first5",
    "cxc",
    "eccv",
)


def evaluate(
    scores: np.ndarray | Tensor,
    text_to_image: Any,
    protocols: Sequence[str] | None = None,
    tie_break: str = "pessimistic",
    image_ids: Any = None,
    caption_ids: Any = None,
    hubness: HubnessConfig | None = None,
    logs: list[QueryLog] | None = None,
) -> dict[str, Any]:
    """Evaluate a score matrix [N, C] of N images and C captions; returns flat results.

    ``text_to_image`` [C] holds the image (0 to N - 1) of each caption; -1: none of them. Images
    without a caption, and captions without an image, are candidates but no queries. ``image_ids``
    [N] and ``caption_ids`` [C] are COCO's ids, needed for ``cxc`` and
    ``eccv``. ``protocols`` are names; None: ``full``, or the COCO protocols if the ids are those of
    COCO's test set. The first protocol's metrics have plain names (``i2t_r1`` ... ``rsum``, R@K in
    per cent), those of the others start with the protocol's name. The query log is appended to
    ``logs``, if given. Raises DataError for a matrix or ids that cannot be ranked, and ConfigError
    for a protocol that does not fit.
    """
    table = matrix_table(scores if isinstance(scores, Tensor) else np.asarray(scores))
    ids = (image_ids, caption_ids)
    return _evaluate(table, text_to_image, ids, protocols, tie_break, hubness, logs)


def _evaluate(
    table: ScoreTable,
    text_to_image: Any,
    ids: tuple[Any, Any],
    protocols: Sequence[str] | None,
    tie_break: str,
    hubness: HubnessConfig | None,
    logs: list[QueryLog] | None,
) -> dict[str, Any]:
    """`evaluate` any table; ``ids`` of images and captions."""
    retrieval_set = _retrieval_set((table.n_images, table.n_captions), text_to_image, *ids)
    used = _choose_protocols(protocols, retrieval_set)
    ranks: dict[str, Ranks] = {}
    collected = None if logs is None else StatisticsCollector(table, retrieval_set.text_to_image)
    ranked = collected.watch() if collected else table
    results = evaluate_protocols(
        lambda subset: ranked.subset(subset.images, subset.captions),
        retrieval_set,
        used,
        tie_break,
        ranks,
    )
    results |= {"protocol": used[0].name, "tie_break": tie_break}
    results |= _count_candidates_only(retrieval_set)
    if hubness is not None:
        results |= hubness_rows(
            table, retrieval_set, used[0], hubness, tie_break, ranks_by_name=ranks
        )
    if logs is not None:
        logs.append(build_query_log(table, retrieval_set, used, ranks, collected))
    return results


def evaluate_file(
    path: Path,
    protocols: Sequence[str] | None = None,
    tie_break: str | None = None,
    hubness: HubnessConfig | None = None,
    logs: list[QueryLog] | None = None,
) -> dict[str, Any]:
    """`evaluate` an .npz file, which may hold scores or embeddings; see `score_files`.

    Errors name the file.
    """
    scores = read_score_file(path)
    for note in scores.notes:
        log.warning("%s", note)
    arrays = scores.arrays
    if hubness is not None and hubness.bank_split is not None:
        raise ConfigError(
            "hubness.bank_split: a score file has no other queries; pass hubness.bank_split=null"
        )
    try:
        results = _evaluate(
            scores.table,
            arrays[OWNERS],
            (arrays.get(IDS[0]), arrays.get(IDS[1])),
            protocols,
            tie_break or "pessimistic",
            hubness,
            logs,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    origin = {"scores": str(path), "scores_sha256": file_hash(path), "select_on": UNKNOWN}
    rerank_k = UNKNOWN if scores.table.depth is None else scores.table.depth
    return origin | results | {"rerank_k": rerank_k, "data_hash": _hash_queries(arrays)}


def _count_candidates_only(retrieval_set: RetrievalSet) -> dict[str, int]:
    """How many images and captions are candidates but no queries, if any; a warning says so."""
    owner, images = retrieval_set.text_to_image, retrieval_set.n_images
    counts = {
        "images_without_caption": images - len(np.unique(owner[owner >= 0])),
        "captions_without_image": int((owner < 0).sum()),
    }
    counts = {key: count for key, count in counts.items() if count}
    for key, count in counts.items():
        log.warning("%d %s: they are ranked as candidates and are no queries", count,
                    key.replace("_", " "))  # fmt: skip
    return counts


def _hash_queries(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of the queries as far as the file describes them: text_to_image and ids."""
    digest = hashlib.sha256()
    for key in (OWNERS, *IDS):
        if key in arrays:
            digest.update(key.encode() + arrays[key].astype(np.int64).tobytes())
    return digest.hexdigest()[:DIGITS]


def _retrieval_set(
    shape: Sequence[int], text_to_image: Any, image_ids: Any, caption_ids: Any
) -> RetrievalSet:
    images, captions = shape
    owner = _integers("text_to_image", text_to_image)
    if len(owner) != captions and len(owner) == images:
        raise DataError(
            f"the scores have shape ({images}, {captions}) and text_to_image has {len(owner)} "
            "entries: the matrix is transposed; expected images in rows (pass scores.T)"
        )
    owner = check_text_to_image(owner, images, captions)
    ids: dict[str, np.ndarray | None] = {}
    for name, given, count in (("image", image_ids, images), ("caption", caption_ids, captions)):
        ids[name] = None if given is None else _integers(f"{name}_ids", given)
        values = ids[name]
        if values is not None and len(values) != count:
            raise DataError(f"{name}_ids: {len(values)} ids; expected one for each of {count}")
        if values is not None and len(np.unique(values)) < count:
            unique, counts = np.unique(values, return_counts=True)
            raise DataError(
                f"{name}_ids: {count - len(unique)} duplicate ids (e.g. "
                f"{unique[counts > 1][0]}); ids must be unique"
            )
    return RetrievalSet(owner, images, ids["image"], ids["caption"])


def _integers(name: str, values: Any) -> np.ndarray:
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{name}: {array.dtype} of shape {array.shape}; expected a 1-D array of integers"
        )
    if array.dtype.kind == "u" and array.size and array.max() >= 2**63:
        raise DataError(f"{name}: holds {array.max()}; expected numbers below 2 ** 63")
    return array.astype(np.int64)


def _choose_protocols(names: Sequence[str] | None, retrieval_set: RetrievalSet) -> list[Protocol]:
    if names is None:
        if retrieval_set.incompatibility(find_protocols(["cxc"])[0]) is not None:
            return find_protocols(["full"])
        more_than_5 = (
            np.bincount(retrieval_set.text_to_image.clip(0)).max() > 5
        )  # captions of an image
        return find_protocols(
            [name for name in COCO_PROTOCOLS if more_than_5 or not name.endswith("first5")]
        )
    usable, skipped = applicable_protocols(find_protocols(names), retrieval_set)
    if skipped:
        reasons = "; ".join(f"protocol={name}: {reason}" for name, reason in skipped.items())
        raise ConfigError(f"{reasons}; pass protocol=full")
    return usable
