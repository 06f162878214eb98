"""Many tars listed: from the cache, and the others by as many processes as there are cores.

Listing is Python's own work (headers, JSON, UTF-8), so that threads would wait for each other.
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
from rich.console import Console
from rich.progress import track

from itr.data.layouts.shards.index import ShardList, kept_list, list_shard

log = logging.getLogger(__name__)

LOCK = "shards.lock"
WORTH = 10.0  # seconds of listing from which on other processes are started for it
LINE_EVERY = 10.0  # seconds between lines where there is no terminal


def list_shards(
    paths: Sequence[Path], second_key: str, cache: str | Path | None
) -> list[ShardList]:
    """The list of each tar of ``paths``. Of several processes of a machine that want the same ones
    one makes them, and the others find them in ``cache``.

    Raises DataError for a tar that cannot be read.
    """
    if cache is None:
        return list(_shown(_made(paths, second_key, None), len(paths)))
    found = {path: kept_list(path, second_key, cache) for path in paths}
    if any(made is None for made in found.values()):
        with _alone(Path(cache)):
            for path in [path for path, made in found.items() if made is None]:
                found[path] = kept_list(path, second_key, cache)
            missing = [path for path, made in found.items() if made is None]
            lists = _shown(_made(missing, second_key, cache), len(missing))
            found.update(zip(missing, lists, strict=True))
    return [made for path in paths if (made := found[path]) is not None]


def _made(paths: Sequence[Path], second_key: str, cache: str | Path | None) -> Iterator[ShardList]:
    began, cores = time.monotonic(), len(os.sched_getaffinity(0))
    for done, path in enumerate(paths):
        left = len(paths) - done
        if done and min(left, cores) > 1 and (time.monotonic() - began) / done * left > WORTH:
            yield from _made_by_processes(paths[done:], second_key, cache, min(left, cores))
            return
        yield list_shard(path, second_key, cache)


def _made_by_processes(
    paths: Sequence[Path], second_key: str, cache: str | Path | None, count: int
) -> Iterator[ShardList]:
    """Lists made by ``count`` processes; here where those cannot be started, or die."""
    make = functools.partial(list_shard, second_key=second_key, cache=cache)
    # Not forked: torch's and the tokenizers' threads do not survive that.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent)
    done = 0
    try:
        for made in pool.map(make, paths):
            yield made
            done += 1
    except BrokenProcessPool:
        log.warning("listing shards: a process of %d is gone; going on with this one", count)
        yield from map(make, paths[done:])
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a process of the pool: end when the process that started it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _shown(lists: Iterable[ShardList], total: int) -> Iterator[ShardList]:
    """``lists`` as they come, with a bar on a terminal and now and then a line elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(lists, "listing shards", total, console=console, transient=True)
        return
    began = told = time.monotonic()
    for done, made in enumerate(lists, 1):
        now = time.monotonic()
        if now - told >= LINE_EVERY:
            told, left = now, (now - began) / done * (total - done)
            log.info("listing shards: %d of %d, about %.0f s left", done, total, left)
        yield made


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Inside, no other process of this machine lists into ``cache``. A lock ends with its owner."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = open(cache / LOCK, "a")
    except OSError:  # a cache that cannot be written to: there is nothing to wait for
        yield
        return
    with file:
        try:
            if not lock_descriptor(file.fileno(), blocking=False):
                log.info("%s: waiting for another process that lists shards", cache)
                lock_descriptor(file.fileno())
        except OSError:  # a file system without locks: the work may be done twice
            pass
        yield
