"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from itr.errors import TrainingError


@contextlib.contextmanager
def replacing(path: Path, what: str) -> Iterator[IO[bytes]]:
    """A handle whose content becomes the file ``path`` (its folder is made) when the block ends,
    and nothing when it raises.

    Raises TrainingError that says ``what`` could not be saved.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise TrainingError(
            f"{path}: {what} could not be saved ({error}); free some space or choose another "
            "folder with out=DIR"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
