"""Files of the cache: whole or not there, and no run stops because one cannot be written."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)


def keep(path: Path, write: Callable[[IO[bytes]], object], what: str) -> None:
    """What ``write`` puts into a file, at ``path``; a warning, of ``what``, where that fails.

    Written under a temporary name, then renamed: two jobs may do so at once.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                write(file)
                file.close()
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: %s are not kept (%s)", path, what, error)
