"""Region arrays and captions written as SCAN's "precomp" layout. Used by `convert`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from itr.data.layouts.precomp import CAPS, IMS, open_regions
from itr.data.layouts.precomp_ids import IDS, MAPPING, row_names
from itr.data.records import Record, Split
from itr.data.tools.writers import Options, each, names_of, train_with
from itr.errors import ConfigError, DataError

Rows = Callable[[Record], np.ndarray]  # the regions [R, D] of an image
SHOWN = 3


class Source(NamedTuple):
    """Where regions come from: shape and dtype of an image's, and how to get them, by split."""

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: dict[str, Rows]


def write_precomp(
    target: Path, splits: dict[str, Split], options: Options, source: Source | None = None
) -> list[str]:
    """``<split>_ims.npy``, ``_caps.txt``, ``_ids.txt`` and ``id_mapping.json`` in ``target``.

    Regions are those of ``source`` (asked for in order), or the splits' own, or those of
    ``options.regions`` by the pictures' names. Raises
    ConfigError where images have different numbers of captions, DataError for missing regions.
    """
    captions = _captions(splits, options.captions)
    shape, dtype, rows = source or _regions(splits, options.regions)
    names = names_of(splits)
    target.mkdir(parents=True)
    mapping: dict[str, str] = {}
    for part, split in splits.items():
        on_disk = {"val": "dev"}.get(part, part)
        array = np.lib.format.open_memmap(
            target / f"{on_disk}{IMS}", "w+", dtype, (split.n_images, *shape)
        )
        for number, (record, _) in enumerate(each(split, "writing")):
            array[number] = rows[part](record)
        array.flush()
        lines = [" ".join(text.split()) for own in captions[part] for text in own]
        (target / f"{on_disk}{CAPS}").write_text("\n".join(lines) + "\n", "utf-8")
        ids = [str(record.image_id) for record in split.records]
        (target / f"{on_disk}{IDS}").write_text("\n".join(ids) + "\n", "utf-8")
        if not all(name.isdigit() for name in names[part]):
            mapping |= dict(zip(ids, names[part], strict=True))
    if mapping:
        (target / MAPPING).write_text(json.dumps(mapping, ensure_ascii=False), "utf-8")
    return [train_with(target, options.name)]


def _captions(splits: dict[str, Split], wanted: int | None) -> dict[str, list[tuple[str, ...]]]:
    """The captions of each image: the same number of every one."""
    found = {}
    for part, split in splits.items():
        counts = np.unique(split.captions_per_image).tolist()
        if wanted is None and len(counts) > 1:
            raise ConfigError(
                f"{split.source}: images of {part} have {counts[0]} to {counts[-1]} captions, and "
                "precomp wants the same number of each; type --captions 5 to take the first five "
                "and repeat them where there are fewer"
            )
        size = wanted or counts[0]
        found[part] = [
            tuple(record.captions[n % len(record.captions)] for n in range(size))
            for record in split.records
        ]
    return found


def _regions(splits: dict[str, Split], folder: Path | None) -> Source:
    if folder is None:
        arrays = {part: split.regions for part, split in splits.items()}
        first = next(iter(arrays.values()))
        assert first is not None  # the source is precomp
        rows = {part: _own(array) for part, array in arrays.items()}
        return Source(first.shape[1:], first.dtype, rows)
    places = _places(folder)
    _require_all(splits, places, folder)
    array = next(iter(places.values()))[0]

    def row(record: Record) -> np.ndarray:
        found, number = places[_key(record)]
        return np.asarray(found[number])

    return Source(array.shape[1:], array.dtype, dict.fromkeys(splits, row))


def _own(array: np.ndarray | None) -> Rows:
    assert array is not None

    def row(record: Record) -> np.ndarray:
        assert isinstance(record.image, int)
        return np.asarray(array[record.image])

    return row


def _key(record: Record) -> str:
    """A picture's name without folder and ending."""
    return os.path.splitext(os.path.basename(str(record.extra.get("file") or record.image)))[0]


def _places(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    """The name of each picture that has regions in ``folder`` -> (array, row)."""
    places: dict[str, tuple[np.ndarray, int]] = {}
    for path in sorted(folder.glob(f"*{IMS}")):
        array = open_regions(path)
        names = row_names(folder, path.name.removesuffix(IMS), len(array))
        for number, name in enumerate(names):
            places[os.path.splitext(os.path.basename(name))[0]] = (array, number)
    if not places:
        raise DataError(f"--regions {folder}: holds no <split>{IMS}")
    if len(shapes := {array.shape[1:] for array, _ in places.values()}) > 1:
        raise DataError(f"--regions {folder}: arrays of different shapes: {sorted(shapes)}")
    return places


def _require_all(
    splits: dict[str, Split], places: dict[str, tuple[np.ndarray, int]], folder: Path
) -> None:
    missing = [
        _key(record)
        for split in splits.values()
        for record in split.records
        if _key(record) not in places
    ]
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise DataError(
            f"--regions {folder}: no regions of {len(missing)} pictures: {shown}; its names look "
            f"like {', '.join(list(places)[:SHOWN])}"
        )
