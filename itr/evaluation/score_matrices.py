"""Evaluates score matrices, from memory or from a file. N images, C captions."""

from __future__ import annotations

import hashlib
import zipfile
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
from itr.evaluation.score_tables import MatrixTable
from itr.evaluation.stored_embeddings import file_hash

UNKNOWN = "unknown"  # facts that a score file does not contain
KEYS = ("scores", "text_to_image", "image_ids", "caption_ids")
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

    ``text_to_image`` [C] holds the image (0 to N - 1) of each caption; every image needs at least
    one caption. ``image_ids`` [N] and ``caption_ids`` [C] are COCO's ids, needed for ``cxc`` and
    ``eccv``. ``protocols`` are names; None: ``full``, or the COCO protocols if the ids are those of
    COCO's test set. The first protocol's metrics have plain names (``i2t_r1`` ... ``rsum``, R@K in
    per cent), those of the others start with the protocol's name. The query log is appended to
    ``logs``, if given. Raises DataError for a matrix or ids that cannot be ranked, and ConfigError
    for a protocol that does not fit.
    """
    if not isinstance(scores, Tensor):
        scores = np.asarray(scores)
    _check_matrix(scores)
    retrieval_set = _retrieval_set(scores.shape, text_to_image, image_ids, caption_ids)
    used = _choose_protocols(protocols, retrieval_set)
    table = MatrixTable(scores)
    ranks: dict[str, Ranks] = {}
    results = evaluate_protocols(
        lambda subset: table.subset(subset.images, subset.captions),
        retrieval_set,
        used,
        tie_break,
        ranks,
    )
    results |= {"protocol": used[0].name, "tie_break": tie_break}
    if hubness is not None:
        results |= hubness_rows(
            table, retrieval_set, used[0], hubness, tie_break, ranks_by_name=ranks
        )
    if logs is not None:
        logs.append(build_query_log(table, retrieval_set, used, ranks))
    return results


def evaluate_file(
    path: Path,
    protocols: Sequence[str] | None = None,
    tie_break: str | None = None,
    hubness: HubnessConfig | None = None,
    logs: list[QueryLog] | None = None,
) -> dict[str, Any]:
    """`evaluate` an .npz file with ``scores``, ``text_to_image`` and, if needed, the ids.

    Errors name the file.
    """
    arrays = _read(path)
    if hubness is not None and hubness.bank_split is not None:
        raise ConfigError(
            "hubness.bank_split: a score file has no other queries; pass hubness.bank_split=null"
        )
    try:
        results = evaluate(
            arrays["scores"],
            arrays["text_to_image"],
            protocols,
            tie_break or "pessimistic",
            arrays.get("image_ids"),
            arrays.get("caption_ids"),
            hubness,
            logs,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    origin = {"scores": str(path), "scores_sha256": file_hash(path), "select_on": UNKNOWN}
    return origin | results | {"rerank_k": UNKNOWN, "data_hash": _hash_queries(arrays)}


def _hash_queries(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of the queries as far as the file describes them: text_to_image and ids."""
    digest = hashlib.sha256()
    for key in KEYS[1:]:
        if key in arrays:
            digest.update(key.encode() + arrays[key].astype(np.int64).tobytes())
    return digest.hexdigest()[:DIGITS]


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"scores={path}: no such file; expected .npz with {', '.join(KEYS)}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("a single array without a name")
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a readable .npz file ({error}); write it with np.savez({path.name!r}, "
            "scores=..., text_to_image=...)"
        ) from error
    if missing := [key for key in KEYS[:2] if key not in arrays]:
        raise DataError(
            f"{path}: missing {' and '.join(missing)} (arrays in the file: "
            f"{', '.join(arrays) or 'none'}); expected scores [images, captions] and "
            "text_to_image [captions]"
        )
    return arrays


def _check_matrix(scores: np.ndarray | Tensor) -> None:
    dtype = str(scores.dtype)
    if scores.ndim != 2 or "float" not in dtype or 0 in scores.shape:
        raise DataError(
            f"scores: {dtype} of shape {tuple(scores.shape)}; expected floats of shape "
            "(images, captions)"
        )


def _retrieval_set(
    shape: Sequence[int], text_to_image: Any, image_ids: Any, caption_ids: Any
) -> RetrievalSet:
    images, captions = shape
    owner = _integers("text_to_image", text_to_image)
    if len(owner) != captions and len(owner) == images:
        raise DataError(
            f"scores have shape ({images}, {captions}) and text_to_image has {len(owner)} entries: "
            "the matrix is transposed; expected images in rows (pass scores.T)"
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
    return array.astype(np.int64)


def _choose_protocols(names: Sequence[str] | None, retrieval_set: RetrievalSet) -> list[Protocol]:
    if names is None:
        if retrieval_set.incompatibility(find_protocols(["cxc"])[0]) is not None:
            return find_protocols(["full"])
        more_than_5 = np.bincount(retrieval_set.text_to_image).max() > 5  # captions of an image
        return find_protocols(
            [name for name in COCO_PROTOCOLS if more_than_5 or not name.endswith("first5")]
        )
    usable, skipped = applicable_protocols(find_protocols(names), retrieval_set)
    if skipped:
        reasons = "; ".join(f"protocol={name}: {reason}" for name, reason in skipped.items())
        raise ConfigError(f"{reasons}; pass protocol=full")
    return usable
