"""Stores embeddings in a file, and refuses to load them if their inputs have changed.

A safetensors file with ``images`` [N, D] and ``texts`` [C, D] in float32 and, for re-ranking, the
tokens [N, L, D] and masks [N, L] of both. Its header holds the provenance: everything that the
embeddings depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from itr import checkpoint
from itr.errors import DataError
from itr.models.base import Encoded

KIND = "embeddings"
SIDES = ("images", "texts")
# Field of the provenance -> how a message describes a mismatch.
MISMATCHES = {
    "checkpoint_sha256": "another checkpoint",
    "data_hash": "different data",
    "tokens": "another tokenizer",
    "precision": "another encoding precision",
    "decoder": "another image decoder",
    "split": "another split",
    "version": "another version of this suite",
}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def save(path: Path, images: Encoded, texts: Encoded, provenance: Mapping[str, Any]) -> None:
    """Write embeddings and their ``provenance`` (JSON-serializable) atomically."""
    tensors: dict[str, torch.Tensor] = {}
    for side, encoded in zip(SIDES, (images, texts), strict=True):
        parts = {"": encoded.pooled, "/tokens": encoded.tokens, "/mask": encoded.mask}
        tensors |= {f"{side}{name}": part for name, part in parts.items() if part is not None}
    checkpoint.write(path, tensors, {"kind": KIND, **provenance})


def load(
    path: Path, provenance: Mapping[str, Any], tokens: bool, device: torch.device | str = "cpu"
) -> tuple[Encoded, Encoded]:
    """Read what `save` wrote to ``device``, with the tokens if ``tokens``.

    Raises CheckpointError for a file of another format, and DataError if its provenance differs or
    if it has no tokens although they are needed.
    """
    meta = checkpoint.read_meta(path)
    if meta.get("kind") != KIND:
        raise DataError(f"{path}: not a file of embeddings; pass another path as embeddings=FILE")
    for key, what in MISMATCHES.items():
        if meta.get(key) != provenance.get(key):
            raise DataError(
                f"{path}: embeddings of {what} ({key}: {meta.get(key)} in the file, "
                f"{provenance.get(key)} expected); delete the file or pass another path as "
                "embeddings=FILE"
            )
    tensors = checkpoint.read_tensors(path)
    if tokens and "texts/tokens" not in tensors:
        raise DataError(
            f"{path}: has no tokens, which re-ranking needs; delete the file, or pass "
            "rerank.enabled=false"
        )
    for side in SIDES:
        if side not in tensors or tensors[side].ndim != 2:
            raise DataError(
                f"{path}: damaged, it has no '{side}' of shape (number, width); delete the file, "
                "or pass another path as embeddings=FILE"
            )
    images, texts = (
        Encoded(
            tensors[side].to(device),
            *(
                None if (t := tensors.get(f"{side}/{n}")) is None or not tokens else t.to(device)
                for n in ("tokens", "mask")
            ),
        )
        for side in SIDES
    )
    return images, texts
