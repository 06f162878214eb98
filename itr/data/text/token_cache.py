"""Tokenizes captions once and caches their token ids on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from itr.array_files import read_arrays
from itr.data.text.token_table import TokenTable
from itr.data.text.tokenizer import Tokenizer, chunks
from itr.files import atomic_write_or_warn
from itr.view import TextView

log = logging.getLogger(__name__)


def tokenize_cached(
    tokenizer: Tokenizer,
    captions: Sequence[str],
    view: TextView,
    cache_dir: str | Path | None = None,
) -> TokenTable:
    """`Tokenizer.tokenize`, cached in ``cache_dir``; a damaged cache file is rebuilt."""
    if cache_dir is None:
        return tokenizer.tokenize(captions, view)
    key = hashlib.sha256(
        json.dumps(
            [
                3,
                tokenizer.fingerprint,
                view.cleaner,
                view.prompt,
                view.max_length,
                view.end,
                view.strip_sep,
            ]
        ).encode()
    )
    for part in _as_json(captions):
        key.update(part)
    path = Path(cache_dir) / f"tokens-{key.hexdigest()[:32]}.npz"
    table = _read_table(path, len(captions), tokenizer.pad_id)
    if table is None:
        table = tokenizer.tokenize(captions, view)
        arrays: dict[str, Any] = {
            "flat": table.flat,
            "words": table.words,
            "offsets": table.offsets,
            "truncated": np.asarray(table.truncated),
        }
        atomic_write_or_warn(path, lambda file: np.savez(file, **arrays), "token ids")
    return table


def _as_json(captions: Sequence[str]) -> Iterator[bytes]:
    """``json.dumps`` of the list of ``captions``, in pieces: there may be millions."""
    yield b"["
    for number, part in enumerate(chunks(captions)):
        yield (b", " if number else b"") + json.dumps(part)[1:-1].encode()
    yield b"]"


def _read_table(path: Path, n_captions: int, pad: int) -> TokenTable | None:
    if not path.is_file():
        return None
    try:
        file = read_arrays(path)
        cut = int(file["truncated"])
        table = TokenTable(file["flat"], file["words"], file["offsets"], pad, cut)
        if len(table) == n_captions and len(table.flat) == len(table.words) == table.offsets[-1]:
            return table
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        pass
    log.warning("%s: damaged cache file; tokenizing again", path)
    return None
