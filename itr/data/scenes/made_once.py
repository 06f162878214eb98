"""A folder that several processes may make at the same time; the first one wins."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itr.errors import DataError
from itr.files import atomic_folder

log = logging.getLogger(__name__)


@contextmanager
def made_once(folder: Path) -> Iterator[Path]:
    """A draft of ``folder``, which is renamed at the end of the block.

    Raises DataError if it cannot be written.
    """
    try:
        with atomic_folder(folder) as draft:
            yield draft
    except OSError as error:
        if not folder.is_dir():
            raise DataError(
                f"{folder}: cannot be written ({error}); free some space there, or pass "
                "data.root=ANOTHER_DIR"
            ) from error
        log.info("%s: another process made it first", folder)
