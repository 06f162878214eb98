"""Pictures looked at before the first step, so that a broken one is no surprise after hours.

Those of training: the first and last bytes of each file, and whatever looks odd is decoded. Those
of evaluation, which needs every one: all are decoded. What was found is kept, by name, size and
time of change of every picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from itr.data.images.decode import JPEG, PNG, decode, name_of, read_bytes
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.records import Slice, Split
from itr.errors import DataError
from itr.files import atomic_write_or_warn

log = logging.getLogger(__name__)

THREADS = 8  # they wait for the disk, or decode outside the interpreter's lock
TAIL = 16  # bytes at the end of a file in which its end mark has to stand
ENDS = {JPEG: b"\xff\xd9", PNG: b"IEND"}
SHOWN = 3
SEEN_WHILE_LISTING = "shards"  # their reader looks at each picture's ends


def find_broken_images(split: Split, cache: str | Path | None = None) -> dict[int, str]:
    """The images whose pictures training has to leave out: number -> what is wrong.

    Raises DataError, naming the first few, if they are more than ``split.broken_limit``.
    """
    if split.regions is not None or split.layout == SEEN_WHILE_LISTING:
        return {}
    found = _look(split, _ends, cache)
    if len(found) > split.broken_limit:
        raise DataError(
            f"{split.source}: {len(found)} of {split.n_images} pictures are broken: "
            f"{_listed(found)}. That is more than data.max_broken allows ({split.broken_limit}); "
            "repair them, or type a larger data.max_broken"
        )
    return found


def require_decodable(split: Split, cache: str | Path | None = None) -> Split:
    """``split``, if every picture of it can be decoded; a few that cannot, inside shards (from
    which nobody removes a member), are left out and noted.

    Raises DataError, naming the first few, for others.
    """
    if split.regions is not None:
        return split
    found = _look(split, _whole, cache)
    if not found:
        return split
    told = f"{split.source}, split {split.name}: {len(found)} of {split.n_images} pictures cannot"
    if not isinstance(split.records, ShardSamples):
        raise DataError(f"{told} be used, and evaluation needs every one: {_listed(found)}")
    if len(found) > min(split.broken_limit, split.n_images - 1):
        raise DataError(
            f"{told} be used: {_listed(found)}. That is more than data.max_broken allows "
            f"({split.broken_limit}); write that tar anew without them, or type a larger "
            "data.max_broken"
        )
    sound = np.ones(split.n_images, bool)
    sound[list(found)] = False
    note = f"left out: {len(found)} pictures that cannot be decoded: {_listed(found)}"
    left = split.records.only(sound)  # evaluation reads no second text
    return dataclasses.replace(split, records=left, second=None, notes=(*split.notes, note))


def _listed(found: dict[int, str]) -> str:
    faults = list(found.values())
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more


def broken_image_warnings(split: Split, broken: dict[int, str]) -> list[str]:
    """What to warn of where pictures of ``split`` are ``broken``; nothing if none is."""
    if not broken:
        return []
    told = f"{len(broken)} of {split.n_images} pictures are broken and left out"
    return [f"{split.source}: {told}: {_listed(broken)}"]


Look = Callable[[Any, str], str]


def _whole(image: Any, decoder: str) -> str:
    """Why a picture cannot be decoded; empty: it can."""
    try:
        decode(read_bytes(image), name_of(image), decoder)
    except DataError as error:
        return str(error)
    return ""


def _ends(image: Any, decoder: str) -> str:
    """As `_whole`, but a picture that begins and ends as it should is believed."""
    try:
        first, path = (image.offset, image.path) if isinstance(image, Slice) else (0, str(image))
        with open(path, "rb") as file:
            last = first + image.size if isinstance(image, Slice) else file.seek(0, os.SEEK_END)
            file.seek(first)
            start = file.read(len(PNG))
            file.seek(max(first, last - TAIL))
            end = file.read(min(TAIL, last - first))
    except OSError:
        return _whole(image, decoder)
    known = next((mark for sign, mark in ENDS.items() if start.startswith(sign)), None)
    return "" if known is not None and known in end else _whole(image, decoder)


def _look(split: Split, look: Look, cache: str | Path | None) -> dict[int, str]:
    """Number of an image -> what is wrong with its picture."""
    places = [record.image for record in split.records]
    kind = f"{look.__name__} {split.decoder}"
    kept = None if cache is None else _kept(places, kind, Path(cache))
    if kept is not None and (known := _read(kept)) is not None:
        return known
    console = Console(stderr=True)
    with ThreadPoolExecutor(THREADS) as pool:
        faults = track(
            pool.map(look, places, itertools.repeat(split.decoder)),
            f"looking at the pictures of {split.name}",
            len(places),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        found = {number: fault for number, fault in enumerate(faults) if fault}
    if kept is not None:
        atomic_write_or_warn(
            kept, lambda file: file.write(json.dumps(found).encode()), "faults of pictures"
        )
    return found


def _read(path: Path) -> dict[int, str] | None:
    """What `_look` kept at ``path``; None: nothing that can be read."""
    try:
        return {int(number): str(fault) for number, fault in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        log.warning("%s: damaged; made again", path)
        return None


def _kept(places: Sequence[object], kind: str, cache: Path) -> Path:
    key = hashlib.sha256(kind.encode())
    for place in places:
        key.update(repr(place).encode())
        path = place if isinstance(place, str) else getattr(place, "path", "")
        try:
            stat = os.stat(path)
        except OSError:
            continue
        key.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return cache / f"pictures-{key.hexdigest()[:24]}.json"
