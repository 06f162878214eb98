"""Score matrices from anywhere: checked, ranked, described. N images, C captions."""

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
from itr.evaluation.protocols import (
    Gallery,
    Protocol,
    applicable,
    evaluate_gallery,
    find_protocols,
)
from itr.evaluation.queries import QueryLog, log_queries
from itr.evaluation.ranks import Ranks, check_owner
from itr.evaluation.score_tables import MatrixTable
from itr.evaluation.stored_embeddings import file_hash

UNKNOWN = "unknown"  # what only the maker of a matrix knows
KEYS = ("scores", "text_to_image", "image_ids", "caption_ids")
COCO = ("coco_5k", "coco_1k_5fold", "coco_5k_first5", "coco_1k_5fold_first5", "cxc", "eccv")


def evaluate(
    scores: np.ndarray | Tensor,
    text_to_image: Any,
    protocols: Sequence[str] | None = None,
    ties: str = "pessimistic",
    image_ids: Any = None,
    caption_ids: Any = None,
    hubness: HubnessConfig | None = None,
    logs: list[QueryLog] | None = None,
) -> dict[str, Any]:
    """Flat results of ``scores`` [N, C] of N images with C captions.

    ``text_to_image`` [C] holds the image (0 to N - 1) of each caption; every image needs at least
    one. ``image_ids`` [N] and ``caption_ids`` [C] are COCO's, for ``cxc`` and ``eccv``.
    ``protocols`` are names; None: ``full``, or COCO's where all ids are those of its test images.
    The first protocol's metrics have plain names (``i2t_r1`` ... ``rsum``, recalls in per cent),
    every other one's start with its name. Every query's answers are added to ``logs``, if given.
    Raises DataError for a matrix or numbers that cannot be
    ranked, ConfigError for a protocol that does not fit.
    """
    if not isinstance(scores, Tensor):
        scores = np.asarray(scores)
    _check_matrix(scores)
    gallery = _gallery(scores.shape, text_to_image, image_ids, caption_ids)
    chosen = _choose(protocols, gallery)
    table = MatrixTable(scores)
    kept: dict[str, Ranks] = {}
    results = evaluate_gallery(
        lambda part: table.part(part.images, part.captions), gallery, chosen, ties, kept
    )
    results |= {"protocol": chosen[0].name, "tie_rule": ties}
    if hubness is not None:
        results |= hubness_rows(table, gallery, chosen[0], hubness, ties, kept=kept)
    if logs is not None:
        logs.append(log_queries(table, gallery, chosen, kept))
    return results


def evaluate_file(
    path: Path,
    protocols: Sequence[str] | None = None,
    ties: str | None = None,
    hubness: HubnessConfig | None = None,
    logs: list[QueryLog] | None = None,
) -> dict[str, Any]:
    """`evaluate` of an .npz file with ``scores``, ``text_to_image`` and, if need be, ids.

    Raises DataError that names the file.
    """
    arrays = _read(path)
    if hubness is not None and hubness.bank is not None:
        raise ConfigError("hubness.bank: a score matrix holds no other queries; leave it null")
    try:
        results = evaluate(
            arrays["scores"],
            arrays["text_to_image"],
            protocols,
            ties or "pessimistic",
            arrays.get("image_ids"),
            arrays.get("caption_ids"),
            hubness,
            logs,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    origin = {"scores": str(path), "scores_sha256": file_hash(path), "select_on": UNKNOWN}
    return origin | results | {"rerank_k": UNKNOWN, "data_hash": _queries_hash(arrays)}


def _queries_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """What was asked, as far as the file says it: whose captions are whose, and ids."""
    digest = hashlib.sha256()
    for key in KEYS[1:]:
        if key in arrays:
            digest.update(key.encode() + arrays[key].astype(np.int64).tobytes())
    return digest.hexdigest()[:DIGITS]


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"scores={path}: no such file; expected an .npz with {', '.join(KEYS)}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("one array without names")
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a readable .npz ({error}); write it with np.savez({path.name!r}, "
            "scores=..., text_to_image=...)"
        ) from error
    if missing := [key for key in KEYS[:2] if key not in arrays]:
        raise DataError(
            f"{path}: has no {' and no '.join(missing)} (found: {', '.join(arrays) or 'nothing'}); "
            "expected scores [images, captions] and text_to_image [captions]"
        )
    return arrays


def _check_matrix(scores: np.ndarray | Tensor) -> None:
    kind = str(scores.dtype)
    if scores.ndim != 2 or "float" not in kind or 0 in scores.shape:
        raise DataError(
            f"scores: {kind} of shape {tuple(scores.shape)}; expected floats of shape "
            "(images, captions)"
        )


def _gallery(shape: Sequence[int], text_to_image: Any, image_ids: Any, caption_ids: Any) -> Gallery:
    images, captions = shape
    owner = _whole("text_to_image", text_to_image)
    if len(owner) != captions and len(owner) == images:
        raise DataError(
            f"scores have shape ({images}, {captions}) and text_to_image {len(owner)} entries: the "
            "matrix is transposed; expected images in rows"
        )
    owner = check_owner(owner, images, captions)
    ids: dict[str, np.ndarray | None] = {}
    for name, values, count in (("image", image_ids, images), ("caption", caption_ids, captions)):
        ids[name] = None if values is None else _whole(f"{name}_ids", values)
        found = ids[name]
        if found is not None and len(found) != count:
            raise DataError(f"{name}_ids: {len(found)} of them, expected one for each of {count}")
        if found is not None and len(np.unique(found)) < count:
            values, counts = np.unique(found, return_counts=True)
            raise DataError(
                f"{name}_ids: {count - len(values)} stand twice (such as "
                f"{values[counts > 1][0]}); an id names one {name}"
            )
    return Gallery(owner, images, ids["image"], ids["caption"])


def _whole(name: str, values: Any) -> np.ndarray:
    found = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise DataError(
            f"{name}: {found.dtype} of shape {found.shape}; expected a row of whole numbers"
        )
    return found.astype(np.int64)


def _choose(names: Sequence[str] | None, gallery: Gallery) -> list[Protocol]:
    if names is None:
        if gallery.misfit(find_protocols(["cxc"])[0]) is not None:
            return find_protocols(["full"])
        more = np.bincount(gallery.text_to_image).max() > 5  # captions: else the first are all
        return find_protocols([name for name in COCO if more or not name.endswith("first5")])
    asked = find_protocols(names)
    fitting, left_out = applicable(asked, gallery)
    if left_out:
        raise ConfigError("; ".join(f"protocol={name}: {why}" for name, why in left_out.items()))
    return fitting
