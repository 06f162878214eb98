"""Atomic file writes: a reader sees the old file or the complete new one, never a partial one."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from itr.errors import TrainingError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to ``path`` when the block ends.

    If the block raises, the temporary file is removed and ``path`` stays as it was. The folder is
    created. With ``durable`` the file and its folder entry are flushed to disk, so that the file
    also survives a power failure. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, not the process id: processes of several machines may write to one shared disk.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        if durable:
            _fsync(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if durable:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            _fsync(path.parent)


@contextlib.contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that becomes ``path`` when the block ends; otherwise like `atomic_path`."""
    with atomic_path(path, durable) as temporary, open(temporary, "wb") as file:
        yield file


def atomic_write_or_warn(path: Path, write: Callable[[IO[bytes]], object], what: str) -> None:
    """Best-effort atomic write of a cache file: ``write`` gets the open file.

    On an OSError a warning names ``what`` (a plural noun) and the run continues without the cache.
    """
    try:
        with atomic_write(path, durable=False) as file:
            write(file)
    except OSError as error:
        log.warning("%s: %s are not cached (%s)", path, what, error)


@contextlib.contextmanager
def explain_write_error(path: Path, what: str) -> Iterator[None]:
    """Turns an OSError into a TrainingError: ``what`` could not be saved at ``path``."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path}: {what} could not be saved ({error}); free some space or choose another "
            "folder with out=DIR"
        ) from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
