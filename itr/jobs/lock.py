"""A lock that allows one job per run directory. The kernel releases it when the process ends."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from itr.errors import ConfigError
from itr.results.run_folder import LOCK
from itr.training.console import log

TRIES, PAUSE = 5, 0.1  # seconds: `itr runs` holds the lock for an instant to see if a job does


class RunLock:
    """Holds ``folder``/run.lock. A context manager; the file names its holder and is not deleted.

    Raises ConfigError, naming the holder, if another process has the lock, and if ``folder`` cannot
    be written. Where a file system has no locks, a warning says so.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.handle: IO[str] = open(folder / LOCK, "a+")
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be written ({error.strerror}); choose another folder with "
                "out=DIR, or have its permissions changed"
            ) from error
        try:
            locked = _lock(self.handle.fileno())
        except OSError as error:  # some network file systems have no locks
            log.warning(
                "%s: cannot be locked (%s); nothing stops a second job from training there",
                folder,
                error.strerror,
            )
            return
        if not locked:
            self.handle.seek(0)
            holder = self.handle.read().strip() or "another process"
            self.handle.close()
            raise ConfigError(
                f"{folder}: {holder} is training in this folder; wait for it, stop it, or choose "
                "another folder with out=DIR"
            )
        self.handle.truncate(0)
        self.handle.write(f"process {os.getpid()} on {platform.node()}\n")
        self.handle.flush()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()


def _lock(descriptor: int) -> bool:
    """Whether the lock was free at one of several tries."""
    for _ in range(TRIES):
        if lock_descriptor(descriptor, blocking=False):
            return True
        time.sleep(PAUSE)
    return False
