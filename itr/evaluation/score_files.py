"""Reads score files: score matrices, one for each direction, or embeddings. N images, C captions.

``.npz`` with ``text_to_image`` [C] and one of

* ``scores`` [N, C];
* ``score_matrix_i2t`` [N, C] and ``score_matrix_t2i`` [C, N], as the evaluations of ALBEF and BLIP
  leave them (``scores`` may be the first one);
* ``images`` [N, D] and ``texts`` [C, D], of which the dot products are ranked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.array_files import read_arrays
from itr.errors import DataError
from itr.evaluation.score_tables import EmbeddingTable, MatrixTable, ScoreTable, TwoWayTable

OWNERS = "text_to_image"
IDS = ("image_ids", "caption_ids")
SCORES, I2T, T2I = "scores", "score_matrix_i2t", "score_matrix_t2i"
EMBEDDINGS = ("images", "texts")
EXPECTED = (
    f"{OWNERS} [captions] and {SCORES} [images, captions], {I2T} and {T2I} [captions, images], or "
    f"{EMBEDDINGS[0]} [images, width] and {EMBEDDINGS[1]} [captions, width]"
)
UNRANKED_SHARE = 0.5  # of a matrix that its lowest score fills if only short lists were scored
ROWS = 1024  # rows checked at a time


@dataclass
class ScoreFile:
    """The scores of a file, its other arrays, and log lines."""

    table: ScoreTable
    arrays: dict[str, np.ndarray]
    notes: list[str]


def read_score_file(path: Path) -> ScoreFile:
    """Read ``path``. Raises DataError, naming it, for a file that cannot be ranked."""
    arrays = _load(path)
    try:
        table, used = _table(arrays)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    notes = []
    if unused := sorted(arrays.keys() - {*used, OWNERS, *IDS}):
        notes.append(f"{path}: arrays that are not used: {', '.join(unused)}")
    if table.depth is not None:
        notes.append(
            f"{path}: only the {table.depth} best candidates of each query are scored, the others "
            "share the lowest score; median and mean rank are unknown"
        )
    return ScoreFile(table, arrays, notes)


def matrix_table(scores: np.ndarray | Tensor, name: str = SCORES) -> MatrixTable:
    """A table of ``scores`` [N, C]. Raises DataError unless they are floats below infinity."""
    if scores.ndim != 2 or not _is_ranked(scores) or 0 in scores.shape:
        raise DataError(
            f"{name}: {scores.dtype} of shape {tuple(scores.shape)}; expected floats of 16, 32 or "
            f"64 bits, of shape (images, captions): {name}.astype(np.float32)"
        )
    if isinstance(scores, np.ndarray) and not scores.dtype.isnative:
        scores = scores.astype(scores.dtype.newbyteorder("="))
    _refuse_infinity(name, scores)
    return MatrixTable(scores)


def _is_ranked(scores: np.ndarray | Tensor) -> bool:
    """Whether PyTorch compares scores of this type."""
    if isinstance(scores, Tensor):
        return scores.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return scores.dtype.kind == "f" and scores.dtype.itemsize <= 8


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"scores={path}: no such file; expected .npz with {EXPECTED}")
    try:
        return read_arrays(path)
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}: not a readable .npz file ({error}); write it with np.savez('scores.npz', "
            "scores=..., text_to_image=...)"
        ) from error


def _table(arrays: Mapping[str, np.ndarray]) -> tuple[ScoreTable, set[str]]:
    """The table, and the names of its arrays."""
    first = SCORES if SCORES in arrays else I2T
    has_embeddings = all(key in arrays for key in EMBEDDINGS)
    missing = [] if OWNERS in arrays else [OWNERS]
    if first not in arrays and not has_embeddings:
        missing.insert(0, SCORES)
    if missing:
        raise DataError(
            f"missing {' and '.join(missing)} (arrays in the file: {', '.join(arrays) or 'none'}); "
            f"expected {EXPECTED}"
        )
    if has_embeddings and (first in arrays or T2I in arrays):
        raise DataError(
            f"holds both score matrices and embeddings ({', '.join(EMBEDDINGS)}); leave one out"
        )
    if has_embeddings:
        return _embedding_table(*(arrays[key] for key in EMBEDDINGS)), set(EMBEDDINGS)
    table = matrix_table(arrays[first], first)
    if T2I not in arrays:
        if I2T in arrays and first == I2T:
            raise DataError(f"holds {I2T} but no {T2I}; call it {SCORES} to rank both ways by it")
        return _with_depth(table, table.values, table.values.T), {first}
    other = matrix_table(arrays[T2I], T2I).values
    if other.shape != table.values.shape[::-1]:
        raise DataError(
            f"{T2I}: shape {other.shape}; expected {table.values.shape[::-1]}, captions in rows, "
            f"beside {first} of shape {table.values.shape}"
        )
    return _with_depth(TwoWayTable(table.values, other), table.values, other), {first, T2I}


def _with_depth(table: ScoreTable, i2t: Any, t2i: Any) -> ScoreTable:
    """``table`` with the length of its short lists as ``depth``, if it looks like some.

    Those evaluations score the k best candidates of each query and leave one constant elsewhere.
    """
    depths = {_scored_per_row(np.asarray(i2t)), _scored_per_row(np.asarray(t2i))}
    depth = depths.pop() if len(depths) == 1 else None
    if depth is not None:
        table.depth = depth
    return table


def _scored_per_row(scores: np.ndarray) -> int | None:
    """Scores above the lowest one in each row, if that number is the same, and few."""
    lowest = scores.min()
    counts = (scores > lowest).sum(axis=1)
    few = counts[0] <= (1 - UNRANKED_SHARE) * scores.shape[1]
    return int(counts[0]) if few and counts[0] and (counts == counts[0]).all() else None


def _embedding_table(images: np.ndarray, texts: np.ndarray) -> EmbeddingTable:
    tensors = []
    for name, values in zip(EMBEDDINGS, (images, texts), strict=True):
        if values.ndim != 2 or values.dtype.kind != "f" or 0 in values.shape:
            raise DataError(
                f"{name}: {values.dtype} of shape {values.shape}; expected floats of shape "
                f"({'images' if name == 'images' else 'captions'}, width)"
            )
        with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
            single = values.astype(np.float32, copy=False)
        if not (finite := np.isfinite(single).all(axis=1)).all():
            raise DataError(
                f"{name}: row {int(np.argmin(finite))} holds NaN, infinity or numbers beyond "
                "float32; expected finite ones"
            )
        tensors.append(torch.from_numpy(single))
    if images.shape[1] != texts.shape[1]:
        raise DataError(
            f"images are {images.shape[1]} wide and texts {texts.shape[1]}; expected one width"
        )
    longest = [float(t.double().norm(dim=1).max()) for t in tensors]
    if longest[0] * longest[1] > torch.finfo(torch.float32).max:
        raise DataError(
            f"images have a norm of up to {longest[0]:.3g} and texts of up to {longest[1]:.3g}: "
            "their dot products may exceed float32; scale them down, which changes no rank"
        )
    return EmbeddingTable(*tensors)


def _refuse_infinity(name: str, scores: np.ndarray | Tensor) -> None:
    """Raise DataError for +inf; -inf marks pairs that were not scored, but not all of them."""
    any_scored = False
    for start in range(0, len(scores), ROWS):
        part = scores[start : start + ROWS]
        if not isinstance(part, Tensor):
            part = torch.from_numpy(np.array(part))  # a copy: the file may be mapped read-only
        if (found := torch.isposinf(part)).any():
            row, column = found.nonzero()[0].tolist()
            raise DataError(
                f"{name}[{start + row}, {column}] is infinite, as are {int(found.sum())} scores of "
                "these rows; expected finite scores, or -inf for pairs that were not scored"
            )
        any_scored = any_scored or not bool(torch.isneginf(part).all())
    if not any_scored:
        raise DataError(f"{name}: every score is -inf, which marks pairs that were not scored")
