"""Atomic file writes, and careful reading of text that somebody else wrote.

A reader sees the old file or the complete new one, never a partial one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import socket
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from itr.errors import TrainingError

log = logging.getLogger(__name__)

YAML_LIMIT, YAML_NODES = 4_000_000, 1_000_000  # characters of a file, values in it


@contextlib.contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to ``path`` when the block ends.

    If the block raises, the temporary file is removed and ``path`` stays as it was. The folder is
    created. With ``durable`` the file and its folder entry are flushed to disk, so that the file
    also survives a power failure. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(path.parent.absolute())
    temporary = _draft(path)
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
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new temporary folder beside ``path``, renamed to ``path`` when the block ends.

    If the block raises, the temporary folder is removed. Raises OSError, also if ``path`` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(path.parent.absolute())
    temporary = _draft(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():  # os.rename would replace an empty folder
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def private_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, removed at the end.

    For libraries that write to a temporary file of their own: what they leave when the process is
    killed is deleted by the next writer, like our own. Raises OSError.
    """
    temporary = _draft(path)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _draft(path: Path) -> Path:
    """A temporary name beside ``path`` that says which process of which machine uses it."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


@functools.cache
def _machine() -> str:
    """Eight digits of this machine, since it was started, and of this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


@functools.cache  # once per process: a cache folder may hold thousands of files
def _remove_orphans(folder: Path) -> None:
    """Delete what processes of this machine left in ``folder`` when they were killed."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f".*.{_machine()}-*-*.tmp"):
            process = path.name.split(".")[-2].split("-")[1]
            if not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


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
def explain_write_error(
    path: Path, what: str, advice: str = "choose another folder with out=DIR"
) -> Iterator[None]:
    """Turns an OSError into a TrainingError: ``what`` could not be saved at ``path``."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path}: {what} could not be saved ({error}); free some space or {advice}"
        ) from error


def open_regular(path: str | Path) -> IO[bytes]:
    """Open ``path`` for reading if it is a regular file.

    A pipe would block for ever, a device has no end. Raises OSError.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a zero byte, or half a surrogate pair
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise OSError(errno.EINVAL, kind, str(path))
    return open(path, "rb")


def parse_json(text: str | bytes) -> Any:
    """``json.loads`` of a file's text. Raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _yaml_loader() -> Any:
    """PyYAML's safe loader, where there is one the one in C, which takes a sixth of the time."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str) -> Any:
    """``yaml.safe_load`` of a file's text. Raises ValueError for whatever cannot be read.

    That includes more than `YAML_LIMIT` characters, and aliases that stand for more than
    `YAML_NODES` values.
    """
    import yaml

    if len(text) > YAML_LIMIT:
        raise ValueError(f"it has {len(text):,} characters; at most {YAML_LIMIT:,} are read")
    try:
        content = yaml.load(text, Loader=_yaml_loader())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # YAMLError, and KeyError or AttributeError for odd tags
        reason = " ".join(str(error).split()) or type(error).__name__
        deep = "maximum nesting depth" in reason
        raise ValueError("it is nested too deeply" if deep else reason) from error
    left, stack = YAML_NODES, [content]
    while stack:
        node, left = stack.pop(), left - 1
        if left < 0:
            raise ValueError(f"its aliases stand for more than {YAML_NODES:,} values")
        stack.extend(node.values() if isinstance(node, dict) else ())
        stack.extend(node if isinstance(node, list) else ())
    return content


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
