"""Reads NumPy's files (.npy, .npz) that somebody else wrote, within stated limits.

Nothing is unpickled. What a header declares is compared with the bytes that are there before memory
is taken for it. Whatever is wrong with a file becomes one ValueError with the reason.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from itr.files import open_regular

MAGIC = b"\x93NUMPY"
EXPANSION, ALLOWANCE = 100, 512 << 20  # bytes that compressed arrays may take: x file size + these
READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class ArrayHeader(NamedTuple):
    """What the header of a .npy file declares."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    start: int  # bytes before the values

    @property
    def n_bytes(self) -> int:
        """The size of the whole file."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> ArrayHeader:
    """The header of the .npy in ``file``. Raises ValueError if it is none, or holds objects."""
    with _reasons():
        version = np.lib.format.read_magic(file)
        if version not in READERS:
            raise ValueError(f"version {version} of the format")
        shape, fortran_order, dtype = READERS[version](file, max_header_size=100_000)
        if dtype.hasobject:
            raise ValueError("holds Python objects, which are never unpickled")
        if any(size < 0 for size in shape) or (not dtype.itemsize and 0 not in shape):
            raise ValueError(f"declares {dtype} of shape {shape}")
        return ArrayHeader(shape, fortran_order, dtype, file.tell())


def read_array(path: Path) -> np.ndarray:
    """The array in a .npy file. Raises OSError, and ValueError with the reason."""
    with open_regular(path) as file:
        header, there = read_header(file), os.fstat(file.fileno()).st_size
        if header.n_bytes > there:
            raise ValueError(_too_short(header, there))
        file.seek(0)
        with _reasons():
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a .npz file, by name. Raises OSError, and ValueError with the reason.

    They may take `EXPANSION` times the size of the file and `ALLOWANCE`, and no more than the
    memory of the machine.
    """
    with open_regular(path) as file, _reasons():
        if file.read(len(MAGIC)) == MAGIC:
            raise ValueError("a single array without a name (.npy), not a .npz of named arrays")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            size = os.fstat(file.fileno()).st_size
            _require_modest(sum(entry.file_size for entry in entries), size)
            arrays: dict[str, np.ndarray] = {}
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in arrays or name == entry.filename:
                    what = "twice" if name in arrays else "which is no array"
                    raise ValueError(f"holds {name!r}, {what}")
                arrays[name] = _read_entry(archive, entry)
    return arrays


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    try:
        with archive.open(entry) as file:
            header = read_header(file)
        if header.n_bytes > entry.file_size:
            raise ValueError(_too_short(header, entry.file_size))
        with archive.open(entry) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{entry.filename}: {error}") from error
    return array


def _too_short(header: ArrayHeader, there: int) -> str:
    return (
        f"declares {header.dtype} of shape {header.shape}, {header.n_bytes:,} bytes, but has "
        f"{there:,}; it is truncated or damaged"
    )


def _require_modest(declared: int, size: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if declared > min(EXPANSION * size + ALLOWANCE, memory):
        raise ValueError(
            f"its arrays need {declared / 1e9:,.1f} GB, but the file has {size / 1e6:,.1f} MB and "
            f"the machine {memory / 1e9:,.1f} GB of memory; it is not read"
        )


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Whatever a damaged file raises becomes a ValueError of one line; OSErrors stay."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeError):
            raise ValueError(f"damaged ({type(error).__name__})") from error
        raise
    except Exception as error:  # BadZipFile, zlib.error, TokenError, MemoryError, ...
        text = " ".join(str(error).split()) or "no more is known"
        raise ValueError(f"damaged ({type(error).__name__}: {text[:200]})") from error
