"""Embeddings in a file: encoded once, scored as often as one likes, refused when stale.

A safetensors file with ``images`` [N, D] and ``texts`` [C, D] float32 and, for re-ranking, the
tokens [N, L, D] and masks [N, L] of both. Its header says what they were made from.
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
# What a stored file is of -> what to say when it is of another.
CHANGED = {
    "checkpoint_sha256": "another checkpoint",
    "data_hash": "other data",
    "tokens": "another tokenizer",
    "precision": "another precision of encoding",
    "decoder": "another decoder of pictures",
    "split": "another split",
    "version": "another version of this suite",
}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def save(path: Path, images: Encoded, texts: Encoded, made_from: Mapping[str, Any]) -> None:
    """Write embeddings and what they were ``made_from`` (JSON-able), all or nothing."""
    tensors: dict[str, torch.Tensor] = {}
    for side, encoded in zip(SIDES, (images, texts), strict=True):
        parts = {"": encoded.pooled, "/tokens": encoded.tokens, "/mask": encoded.mask}
        tensors |= {f"{side}{name}": part for name, part in parts.items() if part is not None}
    checkpoint.write(path, tensors, {"kind": KIND, **made_from})


def load(
    path: Path, made_from: Mapping[str, Any], tokens: bool, device: torch.device | str = "cpu"
) -> tuple[Encoded, Encoded]:
    """What `save` wrote, on ``device``. ``tokens``: those are needed, too.

    Raises CheckpointError for a file that is none of ours, DataError if it was made from anything
    but ``made_from`` or holds no tokens where they are needed.
    """
    meta = checkpoint.read_meta(path)
    if meta.get("kind") != KIND:
        raise DataError(f"{path}: holds no embeddings; name another file with embeddings=FILE")
    for key, what in CHANGED.items():
        if meta.get(key) != made_from.get(key):
            raise DataError(
                f"{path}: embeddings of {what} ({key}: {meta.get(key)} there, "
                f"{made_from.get(key)} now); delete the file or name another with embeddings=FILE"
            )
    found = checkpoint.read_tensors(path)
    if tokens and "texts/tokens" not in found:
        raise DataError(
            f"{path}: holds no tokens, which re-ranking reads; delete the file, or type "
            "rerank.enabled=false"
        )
    images, texts = (
        Encoded(
            found[side].to(device),
            *(
                None if (t := found.get(f"{side}/{n}")) is None or not tokens else t.to(device)
                for n in ("tokens", "mask")
            ),
        )
        for side in SIDES
    )
    return images, texts
