"""Writes region arrays and captions in SCAN's precomp layout, for ``itr data convert``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from itr.data.layouts.precomp import CAPS, IMS
from itr.data.layouts.precomp_ids import IDS, MAPPING, row_names
from itr.data.layouts.region_arrays import open_regions
from itr.data.records import Record, Split
from itr.data.tools.writers import WriteOptions, image_names, iterate, training_hint
from itr.errors import ConfigError, DataError, first_of

ReadRegions = Callable[[Record], np.ndarray]  # the regions [R, D] of an image


class RegionSource(NamedTuple):
    """Where regions come from."""

    shape: tuple[int, ...]  # (R, D) of one image
    dtype: np.dtype
    readers: dict[str, ReadRegions]  # by split


def write_precomp(
    target: Path,
    splits: dict[str, Split],
    options: WriteOptions,
    source: RegionSource | None = None,
) -> list[str]:
    """Write ``<split>_ims.npy``, ``_caps.txt``, ``_ids.txt`` and ``id_mapping.json`` to ``target``.

    Regions come from ``source`` (read in record order), from the splits themselves, or from the
    folder ``options.regions``, by image file name. Raises ConfigError if images have different
    numbers of captions, DataError for missing regions.
    """
    captions = _captions(splits, options.captions)
    shape, dtype, readers = source or _regions(splits, options.regions)
    names = image_names(splits)
    target.mkdir(parents=True, exist_ok=True)
    mapping: dict[str, str] = {}
    for part, split in splits.items():
        on_disk = {"val": "dev"}.get(part, part)
        rows = (readers[part](record) for record, _ in iterate(split))
        _write_rows(target / f"{on_disk}{IMS}", dtype, (split.n_images, *shape), rows)
        lines = [" ".join(text.split()) for texts in captions[part] for text in texts]
        (target / f"{on_disk}{CAPS}").write_text("\n".join(lines) + "\n", "utf-8")
        ids = [str(record.image_id) for record in split.records]
        (target / f"{on_disk}{IDS}").write_text("\n".join(ids) + "\n", "utf-8")
        if not all(name.isdigit() for name in names[part]):
            mapping |= dict(zip(ids, names[part], strict=True))
    if mapping:
        (target / MAPPING).write_text(json.dumps(mapping, ensure_ascii=False), "utf-8")
    location = f"data.root={target} data.layout=precomp"
    if "testall" in splits:  # not found under the name test
        location += " data.splits.test=testall"
    return [training_hint(location, options.name)]


def _write_rows(
    path: Path, dtype: np.dtype, shape: tuple[int, ...], rows: Iterable[np.ndarray]
) -> None:
    """Write ``rows`` as an array of ``shape``: not as a memory map, which dies on a full disk."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
        for row in rows:
            file.write(np.broadcast_to(row, shape[1:]).astype(dtype).tobytes())


def _captions(splits: dict[str, Split], per_image: int | None) -> dict[str, list[tuple[str, ...]]]:
    """The captions of each image, by split: the same number for all images."""
    captions = {}
    for part, split in splits.items():
        counts = np.unique(split.captions_per_image).tolist()
        if per_image is None and len(counts) > 1:
            raise ConfigError(
                f"{split.source}: images of {part} have {counts[0]} to {counts[-1]} captions; "
                "precomp needs the same number for all. Pass --captions 5 to write the first five, "
                "repeated if there are fewer"
            )
        size = per_image or counts[0]
        captions[part] = [
            tuple(record.captions[n % len(record.captions)] for n in range(size))
            for record in split.records
        ]
    return captions


def _regions(splits: dict[str, Split], folder: Path | None) -> RegionSource:
    if folder is None:
        arrays = {part: split.regions for part, split in splits.items()}
        first = next(iter(arrays.values()))
        assert first is not None  # the source is precomp
        readers = {part: _row_reader(array) for part, array in arrays.items()}
        return RegionSource(first.shape[1:], first.dtype, readers)
    rows = _rows_by_image(folder)
    _require_all(splits, rows, folder)
    first = next(iter(rows.values()))[0]

    def read(record: Record) -> np.ndarray:
        array, row = rows[_stem(record)]
        return np.asarray(array[row])

    return RegionSource(first.shape[1:], first.dtype, dict.fromkeys(splits, read))


def _row_reader(array: np.ndarray | None) -> ReadRegions:
    assert array is not None

    def read(record: Record) -> np.ndarray:
        assert isinstance(record.image, int)
        return np.asarray(array[record.image])

    return read


def _stem(record: Record) -> str:
    """The image file name without folder and extension."""
    return os.path.splitext(os.path.basename(str(record.extra.get("file") or record.image)))[0]


def _rows_by_image(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    """Image file name without extension -> (array, row) of its regions in ``folder``."""
    rows: dict[str, tuple[np.ndarray, int]] = {}
    for path in sorted(folder.glob(f"*{IMS}")):
        array = open_regions(path)
        names = row_names(folder, path.name.removesuffix(IMS), len(array))
        for number, name in enumerate(names):
            rows[os.path.splitext(os.path.basename(name))[0]] = (array, number)
    if not rows:
        raise DataError(
            f"--regions {folder}: no <split>{IMS} there; pass the folder of the region arrays"
        )
    if len(shapes := {array.shape[1:] for array, _ in rows.values()}) > 1:
        raise DataError(
            f"--regions {folder}: arrays of different shapes {sorted(shapes)}; expected one shape"
        )
    return rows


def _require_all(
    splits: dict[str, Split], rows: dict[str, tuple[np.ndarray, int]], folder: Path
) -> None:
    missing = [
        _stem(record)
        for split in splits.values()
        for record in split.records
        if _stem(record) not in rows
    ]
    if missing:
        raise DataError(
            f"--regions {folder}: no regions for {len(missing)} images: {first_of(missing)}; names "
            f"there look like {', '.join(list(rows)[:3])}"
        )
