"""Token ids of a split's captions, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from itr.data.table import TokenTable
from itr.data.tokenizer import Tokenizer
from itr.view import TextView

log = logging.getLogger(__name__)


def build_table(
    tokenizer: Tokenizer,
    captions: Sequence[str],
    view: TextView,
    cache_dir: str | Path | None = None,
) -> TokenTable:
    """`Tokenizer.tokenize`, kept in ``cache_dir`` for the next run; a damaged file is rebuilt."""
    if cache_dir is None:
        return tokenizer.tokenize(captions, view)
    key = hashlib.sha256(
        json.dumps(
            [2, tokenizer.fingerprint, view.cleaner, view.prompt, view.max_length, view.end]
        ).encode()
    )
    key.update(json.dumps(list(captions)).encode())
    path = Path(cache_dir) / f"tokens-{key.hexdigest()[:32]}.npz"
    table = _read_table(path, len(captions), tokenizer.pad_id)
    if table is None:
        table = tokenizer.tokenize(captions, view)
        _write_table(path, table)
    return table


def _read_table(path: Path, n_captions: int, pad: int) -> TokenTable | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            table = TokenTable(file["flat"], file["words"], file["offsets"], pad)
        if len(table) == n_captions and len(table.flat) == len(table.words) == table.offsets[-1]:
            return table
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    log.warning("%s: damaged; made again", path)
    return None


def _write_table(path: Path, table: TokenTable) -> None:
    """Written under a temporary name, then renamed: two jobs may do so at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez(file, flat=table.flat, words=table.words, offsets=table.offsets)
                file.close()
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: token ids are not kept (%s)", path, error)
