"""Finds image files by the names that annotations give them.

A name in another Unicode form (Mac zips), of another case or with Windows separators is found, too.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from itr.errors import DataError

MAX_NAME = 4096  # characters of a path; no file system has longer ones


class ImageFolder:
    """The files below ``base``. Each folder is listed once; no file is tested."""

    def __init__(self, base: Path):
        self.base = base
        self._names: dict[str, set[str]] = {}
        self._folded: dict[str, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """The path of ``name`` as it is on disk, relative to ``base``; None if it is not there."""
        found = self._find(name)
        return self._find(name.replace("\\", "/")) if found is None and "\\" in name else found

    def _find(self, name: str) -> str | None:
        if len(name) > MAX_NAME:
            return None
        folder, file = os.path.split(name)
        if file in self._list(folder):
            return name
        if folder not in ("", os.sep) and not self._list(folder):
            actual = self._find(folder)
            return None if actual in (None, folder) else self._find(os.path.join(str(actual), file))
        other = self._fold(folder).get(_folded(file))
        return None if other is None else os.path.join(folder, other)

    def _list(self, folder: str) -> set[str]:
        if folder not in self._names:
            self._names[folder] = _file_names(self.base / folder)
        return self._names[folder]

    def _fold(self, folder: str) -> dict[str, str]:
        """Folded name -> name, for names that are unique when folded."""
        if folder not in self._folded:
            folded: dict[str, str] = {}
            doubled = set()
            for name in self._list(folder):
                if folded.setdefault(_folded(name), name) != name:
                    doubled.add(_folded(name))
            self._folded[folder] = {k: n for k, n in folded.items() if k not in doubled}
        return self._folded[folder]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a zero byte
        return set()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
