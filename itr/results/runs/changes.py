"""What can be done with a run directory: tags, archive, delete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from itr.errors import ConfigError
from itr.files import atomic_write, explain_write_error
from itr.results.run_folder import CONFIG, TAGS
from itr.results.runs.run_state import is_running, tags

TAG = re.compile(r"[\w.:+-]+")
ARCHIVE = "archive"  # beside the run


def change_tags(folder: Path, added: Sequence[str], removed: Sequence[str]) -> tuple[str, ...]:
    """Add and remove tags of a run; returns those it has now. Raises ConfigError."""
    _require_run(folder)
    for tag in added:
        if not TAG.fullmatch(tag):
            raise ConfigError(f"--add {tag}: expected letters, digits and . : + - _ alone")
    kept = [tag for tag in tags(folder) if tag not in removed]
    now = tuple(dict.fromkeys([*kept, *added]))
    with explain_write_error(folder / TAGS, "the tags"), atomic_write(folder / TAGS) as file:
        file.write("".join(f"{tag}\n" for tag in now).encode())
    return now


def archive(folder: Path, to: Path | None) -> Path:
    """Move a run into ``to`` (default: ``archive`` beside it); returns its new place.

    Raises ConfigError for a run that is running, and if there is one of that name.
    """
    require_idle(folder)
    target = (to or folder.absolute().parent / ARCHIVE) / folder.absolute().name
    if target.exists():
        raise ConfigError(f"{target}: exists; pass --to DIR, or rename the run {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, target)
    return target


def delete(folder: Path) -> None:
    """Delete a run with all its files. Raises ConfigError for a run that is running."""
    require_idle(folder)
    shutil.rmtree(folder)


def require_idle(folder: Path) -> None:
    """Raises ConfigError unless ``folder`` is a run directory in which no job trains."""
    _require_run(folder)
    if is_running(folder):
        raise ConfigError(f"{folder}: a job is training in this folder; stop it first")


def _require_run(folder: Path) -> None:
    if os.path.islink(folder) or not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder}: is not a run directory (it has no {CONFIG}); pass run directories, as "
            "`itr runs` lists them"
        )
