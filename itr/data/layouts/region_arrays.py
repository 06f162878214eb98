"""Opens and validates region arrays ``<split>_ims.npy``: [rows, R, D], memory-mapped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from itr import array_files
from itr.array_files import read_array
from itr.data.records import Split
from itr.errors import DataError
from itr.files import atomic_write_or_warn, open_regular

DTYPES = (np.dtype("<f4"), np.dtype("<f2"))
CHUNK_BYTES = 64 << 20


def open_regions(path: Path) -> np.ndarray:
    """Memory-map the array [rows, R, D] in ``path``, read-only; float32 or float16.

    Raises DataError for a file that is not .npy, is truncated, or holds another kind of array.
    """
    shape, dtype, n_bytes = read_header(path)
    advice = "; write it again with np.save(path, regions.astype(np.float32))"
    if dtype not in DTYPES:
        raise DataError(
            f"{path}: holds {dtype.str} ({dtype.name}); expected little-endian float32 or float16"
            + advice
        )
    if len(shape) != 3 or 0 in shape:
        raise DataError(f"{path}: has shape {shape}; expected (rows, regions, width), without a 0")
    if (size := path.stat().st_size) < n_bytes:
        raise DataError(
            f"{path}: truncated: {size} bytes, but shape {shape} of {dtype.name} takes {n_bytes};"
            " copy or download it again"
        )
    return np.load(path, mmap_mode="r", allow_pickle=False)


def open_guides(path: Path, rows: int) -> np.ndarray | None:
    """Load the vectors [rows, G] beside a region array as float32; None if there is no file.

    Raises DataError if the file does not fit the ``rows`` of the region array or is not finite.
    """
    if not path.is_file():
        return None
    shape, dtype, _ = read_header(path)
    if dtype.kind != "f" or len(shape) != 2 or shape[0] != rows:
        raise DataError(
            f"{path}: holds {dtype.name} of shape {shape}; expected floats of shape ({rows}, "
            "width), one vector per row of the region array"
        )
    try:
        guides = read_array(path).astype(np.float32)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: truncated ({error}); copy it or write it again") from error
    if len(bad := np.flatnonzero(~np.isfinite(guides).all(axis=1))):
        raise DataError(f"{path}: row {bad[0]} is not finite; write the file again")
    return guides


def read_header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and expected file size in bytes of a .npy file in C order."""
    try:
        with open_regular(path) as file:
            header = array_files.read_header(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(
            f"{path}: not a valid .npy file ({error}); expected the output of np.save"
        ) from error
    if header.fortran_order:
        raise DataError(f"{path}: is in Fortran order; write np.ascontiguousarray(regions) instead")
    return header.shape, header.dtype, header.n_bytes


def check_regions_finite(split: Split, cache_dir: str | Path | None = None) -> None:
    """Check every region of ``split`` for NaN and infinity, in chunks of about 64 MB.

    With ``cache_dir``, files that passed are not checked again until their path, size or
    modification time changes. Raises DataError that names the first bad row.
    """
    if split.regions is None:
        return
    path = Path(split.source)
    stamp = _stamp(path, cache_dir) if isinstance(split.regions, np.memmap) else None
    if stamp is not None and stamp.exists():
        return
    for first, chunk in _chunks(split.regions):
        require_finite(path, chunk, np.arange(len(chunk)), first)
    if stamp is not None:
        atomic_write_or_warn(stamp, lambda file: None, "checked regions")


def _stamp(path: Path, cache_dir: str | Path | None) -> Path | None:
    """The empty cache file whose existence says that the array passed."""
    if cache_dir is None:
        return None
    stat = os.stat(path)
    text = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return Path(cache_dir) / f"finite-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _chunks(regions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, CHUNK_BYTES // max(1, regions[0].nbytes))
    for first in range(0, len(regions), rows):
        yield first, map_again(regions)[first : first + rows]


def map_again(array: np.ndarray) -> np.ndarray:
    """A fresh memory map of ``array``; pages read through an old map would count as our memory."""
    if not isinstance(array, np.memmap):
        return array
    try:
        return np.load(str(array.filename), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{array.filename}: was changed while it was read ({error}); start again"
        ) from error


class MappedFile:
    """The file of a memory map. If it is cut short, reading the map ends the process (SIGBUS)."""

    def __init__(self, array: np.ndarray):
        self.path, self.stat = "", None
        if isinstance(array, np.memmap) and array.filename is not None:
            self.path = str(array.filename)
            self.stat = os.stat(self.path)

    def require_whole(self) -> None:
        """Raise DataError if the file has been cut short. One that was replaced is still mapped."""
        if self.stat is None:
            return
        try:
            now = os.stat(self.path)
        except OSError:
            return
        if os.path.samestat(now, self.stat) and now.st_size < self.stat.st_size:
            raise DataError(
                f"{self.path}: was cut short while it was read, from {self.stat.st_size:,} to "
                f"{now.st_size:,} bytes; restore it, then resume with resume=auto"
            )


def require_finite(path: Path, regions: np.ndarray, rows: np.ndarray, first: int = 0) -> None:
    """Raise DataError if one of ``rows`` of ``regions`` [n, R, D] is not finite.

    ``first`` is the row number in the file of ``regions[0]``, for the message.
    """
    for row in rows:
        if not np.isfinite(regions[row]).all():
            raise DataError(f"{path}: {bad_row(first + int(row), np.asarray(regions[row]))}")


def bad_row(row: int, values: np.ndarray) -> str:
    """Describe row ``row``, whose ``values`` [R, D] are not all finite."""
    region, column = np.argwhere(~np.isfinite(values))[0]
    return (
        f"row {row}, region {region}, column {column} is {values[region, column]}; features must "
        "be finite: repair or extract that image again"
    )


def check_same_width(splits: Iterable[Split]) -> None:
    """Raise DataError if the region widths D of ``splits`` differ."""
    with_regions = [split for split in splits if split.regions is not None]
    widths = {split.regions.shape[2] for split in with_regions}  # type: ignore[union-attr]
    if len(widths) > 1:
        listed = ", ".join(f"{s.source}: {s.regions.shape[2]}" for s in with_regions)  # type: ignore[union-attr]
        raise DataError(
            f"region widths differ between splits ({listed}); extract all splits with the same "
            "feature extractor"
        )
