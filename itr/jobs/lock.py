"""One job a run directory: a lock that the kernel lets go of when its process ends, however."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from itr.errors import ConfigError

LOCK = "run.lock"


class RunLock:
    """Holds ``folder``/run.lock. A context manager; the file itself stays, empty of meaning.

    Raises ConfigError, naming the holder, if another process has it.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.handle: IO[str] = open(folder / LOCK, "a+")
        try:
            locked = lock_descriptor(self.handle.fileno(), blocking=False)
        except OSError as error:
            self.handle.close()
            raise ConfigError(
                f"{folder}: cannot be locked ({error}); choose a folder on another disk with "
                "out=DIR"
            ) from error
        if not locked:
            self.handle.seek(0)
            holder = self.handle.read().strip() or "another process"
            self.handle.close()
            raise ConfigError(
                f"{folder}: is being trained by {holder}; wait for it, stop it, or name another "
                "folder with out=DIR"
            )
        self.handle.truncate(0)
        self.handle.write(f"process {os.getpid()} on {platform.node()}\n")
        self.handle.flush()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()
