"""Indexes many tars: reads cached indexes, and builds the others with one process per core.

Indexing is pure Python work (headers, JSON, UTF-8), so threads would not speed it up.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor
from rich.progress import track

from itr.data.layouts.shards.index import ShardIndex, cached_index, index_shard
from itr.terminal import PlainConsole

log = logging.getLogger(__name__)

LOCK = "shards.lock"
PARALLEL_FROM = 10.0  # seconds of remaining work that justify starting processes
LOG_EVERY = 10.0  # seconds between log lines without a terminal


def index_shards(
    paths: Sequence[Path], second_key: str, cache: str | Path | None
) -> list[ShardIndex]:
    """The index of each tar in ``paths``.

    If several processes of a machine need the same indexes, one of them builds them and the others
    read them from ``cache``. Raises DataError for a tar that cannot be read.
    """
    if cache is None:
        return list(_with_progress(_build(paths, second_key, None), len(paths)))
    indexes = {path: cached_index(path, second_key, cache) for path in paths}
    if any(index is None for index in indexes.values()):
        with _lock(Path(cache)):
            for path in [path for path, index in indexes.items() if index is None]:
                indexes[path] = cached_index(path, second_key, cache)
            missing = [path for path, index in indexes.items() if index is None]
            built = _with_progress(_build(missing, second_key, cache), len(missing))
            indexes.update(zip(missing, built, strict=True))
    return [index for path in paths if (index := indexes[path]) is not None]


def _build(
    paths: Sequence[Path], second_key: str, cache: str | Path | None
) -> Iterator[ShardIndex]:
    """Build in this process, and switch to a pool if that would take long."""
    start, cores = time.monotonic(), len(os.sched_getaffinity(0))
    for done, path in enumerate(paths):
        left = len(paths) - done
        workers = min(left, cores)
        if done and workers > 1 and (time.monotonic() - start) / done * left > PARALLEL_FROM:
            yield from _build_in_pool(paths[done:], second_key, cache, workers)
            return
        yield index_shard(path, second_key, cache)


def _build_in_pool(
    paths: Sequence[Path], second_key: str, cache: str | Path | None, workers: int
) -> Iterator[ShardIndex]:
    """Build with ``workers`` processes; continue in this one if they cannot start or die."""
    build = functools.partial(index_shard, second_key=second_key, cache=cache)
    # Spawned, because the threads of torch and the tokenizers do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _exit_with_parent)
    done = 0
    try:
        for index in pool.map(build, paths):
            yield index
            done += 1
    except BrokenProcessPool:
        log.warning("indexing shards: one of %d processes died; continuing in this one", workers)
        yield from map(build, paths[done:])
    finally:
        pool.shutdown(cancel_futures=True)


def _exit_with_parent() -> None:
    """Initializer of a pool process: exit when the parent process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _with_progress(indexes: Iterable[ShardIndex], total: int) -> Iterator[ShardIndex]:
    """``indexes`` with a progress bar on a terminal and occasional log lines elsewhere."""
    console = PlainConsole(stderr=True)
    if console.is_terminal:
        yield from track(indexes, "indexing shards", total, console=console, transient=True)
        return
    start = last_line = time.monotonic()
    for done, index in enumerate(indexes, 1):
        now = time.monotonic()
        if now - last_line >= LOG_EVERY:
            last_line, left = now, (now - start) / done * (total - done)
            log.info("indexing shards: %d of %d, about %.0f s left", done, total, left)
        yield index


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """Exclude other processes of this machine that index into ``cache``.

    The lock is released when its owner exits. Without a writable cache, or on a file system without
    locks, nothing is locked and work may be done twice.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = open(cache / LOCK, "a")
    except OSError:
        yield
        return
    with file:
        try:
            if not lock_descriptor(file.fileno(), blocking=False):
                log.info("%s: waiting for another process that indexes shards", cache)
                lock_descriptor(file.fileno())
        except OSError:
            pass
        yield
