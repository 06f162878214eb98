"""Checks that images can be decoded before a run starts, rather than failing hours later.

For training, the first and last bytes of each file are checked, and suspicious images are decoded.
For evaluation, which needs every image, all of them are decoded. Results are cached by name, size
and modification time of the images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from itr.data.images.decode import JPEG, PNG, decode, image_name, read_bytes
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.parquet_images import ParquetImage
from itr.data.records import Slice, Split
from itr.errors import DataError, first_of
from itr.files import atomic_write_or_warn, open_regular, parse_json
from itr.terminal import PlainConsole

log = logging.getLogger(__name__)

THREADS = 8  # they wait for the disk, or decode without the interpreter lock
TAIL = 16  # the end marker of an image must be within the last bytes of its file
END_MARKERS = {JPEG: b"\xff\xd9", PNG: b"IEND"}
CHECKED_WHEN_INDEXED = "shards"  # layout whose reader checks the first and last bytes itself


def find_broken_images(split: Split, cache: str | Path | None = None) -> dict[int, str]:
    """Images that training has to leave out: index -> what is wrong.

    Raises DataError, naming the first few, if there are more than ``split.broken_limit``.
    """
    if split.regions is not None or split.layout == CHECKED_WHEN_INDEXED:
        return {}
    faults = _check_all(split, _check_ends, cache)
    if len(faults) > split.broken_limit:
        raise DataError(
            f"{split.source}: {len(faults)} of {split.n_images} images are broken: "
            f"{_list_faults(faults.values())}. data.max_broken allows {split.broken_limit}; repair "
            "the images, or pass a larger data.max_broken"
        )
    return faults


def require_decodable(split: Split, cache: str | Path | None = None) -> Split:
    """Check that every image of ``split`` can be decoded.

    Undecodable images in shards are left out and noted, up to ``split.broken_limit``, because tar
    members are hard to remove. Raises DataError, naming the first few, in all other cases.
    """
    if split.regions is not None:
        return split
    faults = _check_all(split, _check_decoding, cache)
    if not faults:
        return split
    listed = _list_faults(faults.values())
    count = f"{len(faults)} of {split.n_images} images"
    message = f"{split.source}, split {split.name}: {count} cannot be decoded: {listed}"
    if not isinstance(split.records, ShardSamples):
        raise DataError(f"{message}. Evaluation needs every image; repair or replace them")
    if len(faults) > min(split.broken_limit, split.n_images - 1):
        raise DataError(
            f"{message}. data.max_broken allows {split.broken_limit}; write the tar again without "
            "them, or pass a larger data.max_broken"
        )
    decodable = np.ones(split.n_images, bool)
    decodable[list(faults)] = False
    note = f"left out: {len(faults)} images that cannot be decoded: {listed}"
    records = split.records.only(decodable)
    # Evaluation reads no second text.
    return dataclasses.replace(split, records=records, second=None, notes=(*split.notes, note))


def broken_image_warnings(split: Split, faults: dict[int, str]) -> list[str]:
    """Warnings about the ``faults`` of images that training leaves out."""
    if not faults:
        return []
    count = f"{len(faults)} of {split.n_images} images are broken and left out"
    return [f"{split.source}: {count}: {_list_faults(faults.values())}"]


def _list_faults(faults: Collection[str]) -> str:
    return first_of(faults, separator="; ")


Check = Callable[[Any, str], str]  # (Record.image, decoder) -> fault, empty if there is none


def _check_decoding(image: Any, decoder: str) -> str:
    """Decode the image."""
    try:
        decode(read_bytes(image), image_name(image), decoder)
    except DataError as error:
        return str(error)
    return ""


def _check_ends(image: Any, decoder: str) -> str:
    """Check the first and last bytes; decode the image only if they are not as expected."""
    if isinstance(image, ParquetImage):
        return _check_decoding(image, decoder)
    try:
        first, path = (image.offset, image.path) if isinstance(image, Slice) else (0, str(image))
        with open_regular(path) as file:
            last = first + image.size if isinstance(image, Slice) else file.seek(0, os.SEEK_END)
            file.seek(first)
            start = file.read(len(PNG))
            file.seek(max(first, last - TAIL))
            end = file.read(min(TAIL, last - first))
    except OSError:
        return _check_decoding(image, decoder)
    marker = next((mark for magic, mark in END_MARKERS.items() if start.startswith(magic)), None)
    return "" if marker is not None and marker in end else _check_decoding(image, decoder)


def _check_all(split: Split, check: Check, cache: str | Path | None) -> dict[int, str]:
    """Index of each faulty image -> fault."""
    images = [record.image for record in split.records]
    kind = f"{check.__name__} {split.decoder}"
    path = None if cache is None else _cache_file(images, kind, Path(cache))
    if path is not None and (cached := _load(path)) is not None:
        return cached
    console = PlainConsole(stderr=True)
    with ThreadPoolExecutor(THREADS) as pool:
        results = track(
            pool.map(check, images, itertools.repeat(split.decoder)),
            f"checking the images of {split.name}",
            len(images),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        faults = {number: fault for number, fault in enumerate(results) if fault}
    if path is not None:
        atomic_write_or_warn(
            path, lambda file: file.write(json.dumps(faults).encode()), "faults of images"
        )
    return faults


def _load(path: Path) -> dict[int, str] | None:
    try:
        return {int(number): str(fault) for number, fault in parse_json(path.read_bytes()).items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        log.warning("%s: damaged cache file; checking the images again", path)
        return None


def _cache_file(images: Sequence[object], kind: str, cache: Path) -> Path:
    key = hashlib.sha256(kind.encode())
    for image in images:
        key.update(repr(image).encode())
        path = image if isinstance(image, str) else getattr(image, "path", "")
        try:
            stat = os.stat(path)
        except OSError:
            continue
        key.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return cache / f"pictures-{key.hexdigest()[:24]}.json"
