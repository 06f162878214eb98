"""Recognizes image files: by the endings that Pillow reads, or by their first bytes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from itr.data.layout import is_junk

PREFERRED = ("jpg", "jpeg", "png", "webp")  # used first if a sample of a tar has several images
# Formats that Pillow knows but cannot decode without further programs.
UNREADABLE = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


@functools.cache
def image_extensions() -> dict[str, int]:
    """Image extensions that Pillow reads, without the dot -> preference (0 is preferred)."""
    known = Image.registered_extensions()
    readable = {
        extension.lstrip(".")
        for extension, name in known.items()
        if name in Image.OPEN and name not in UNREADABLE
    }
    ordered = (*PREFERRED, *sorted(readable - set(PREFERRED)))
    return {extension: position for position, extension in enumerate(ordered)}


def is_image(path: str | Path) -> bool:
    """Whether ``path`` has the ending of an image or, without a known ending, is one."""
    extension = os.path.splitext(path)[1].lower().lstrip(".")
    if extension in image_extensions():
        return True
    try:
        with Image.open(path) as image:
            return image.format not in UNREADABLE
    except Exception:  # noqa: BLE001  Pillow's plugins raise many types
        return False


def files_below(folder: str | Path) -> Iterator[str]:
    """The files in ``folder`` and its subfolders, sorted; without those that systems add."""
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        yield from (os.path.join(here, name) for name in sorted(files) if not is_junk(name))
