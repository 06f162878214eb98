"""Reader of SCAN's pre-computed regions: ``<split>_ims.npy`` beside ``<split>_caps.txt``.

The array [rows, R, D] stays on disk (COCO's has 33 GB) and is memory-mapped, read-only. A file
``<split>_clip.npy`` [rows, G] beside it, where there is one, holds one vector more of each image;
``<split>_ids.txt`` the images' ids, ``<split>_capids.txt`` the captions', and ``id_mapping.json``
the names of the images' files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from itr.data.layouts.precomp_ids import read_ids
from itr.data.records import Record, Split
from itr.errors import DataError
from itr.files import atomic_write_or_warn
from itr.instantiate import nearest

IMS, CAPS, GUIDES = "_ims.npy", "_caps.txt", "_clip.npy"
LEGACY = 5  # dev and test files of the field repeat each image row once per caption
ROWS_AT_OPEN = 32  # rows looked at for NaN when a split is opened
GROUPS_AT_OPEN = 64  # groups of five compared when a split is opened
CHUNK_BYTES = 64 << 20


def splits_in(folder: Path) -> list[str]:
    """Names of the splits of which ``folder`` holds at least one of the two files."""
    return sorted(
        {path.name.removesuffix(end) for end in (IMS, CAPS) for path in folder.glob(f"*{end}")}
    )


def read_split(folder: str | Path, split: str, max_dev_captions: int | None = None) -> Split:
    """The split called ``split`` on disk; its region array is mapped, not loaded.

    ``max_dev_captions`` cuts a split named ``dev`` to its first captions (the authors' habit).
    Raises DataError that names the file for anything that cannot be used. Only a sample of the
    features is checked here; `check_regions_finite` checks all of them.
    """
    folder = Path(folder)
    ims, caps = folder / f"{split}{IMS}", folder / f"{split}{CAPS}"
    _require(folder, split, ims, caps)
    regions = open_regions(ims)
    captions = read_captions(caps)
    step, share = _fit(ims, regions, caps, len(captions))
    notes = []
    if step > 1:
        notes.append(f"{ims}: every image row stands {step} times; one of them is read")
    n_captions = len(captions)
    if max_dev_captions is not None and split == "dev" and max_dev_captions < n_captions:
        n_captions = max_dev_captions
        notes.append(
            f"{caps}: cut to the first {n_captions} of {len(captions)} captions "
            f"(data.max_dev_captions={max_dev_captions})"
        )
    ids = read_ids(folder, split, len(regions), step, share)
    records = [
        Record(
            image_id=ids.numbers[number],
            image=number * step,
            captions=tuple(captions[first : min(first + share, n_captions)]),
            caption_ids=tuple(ids.captions[first : min(first + share, n_captions)]),
            extra={"file": ids.files[number]} if ids.files else {},
        )
        for number, first in enumerate(range(0, n_captions, share))
    ]
    rows = np.unique(np.linspace(0, len(regions) - 1, ROWS_AT_OPEN).astype(np.int64))
    _require_finite(ims, regions, rows)
    if flat := [row for row in rows.tolist() if np.ptp(regions[row]) == 0]:
        notes.append(
            f"{ims}: {len(flat)} of {len(rows)} rows looked at hold one value only, row {flat[0]} "
            "the first, as if their images had not been extracted"
        )
    guides = _open_guides(folder / f"{split}{GUIDES}", len(regions))
    return Split(split, "precomp", records, regions, guides, source=str(ims), notes=tuple(notes))


def _require(folder: Path, split: str, *files: Path) -> None:
    missing = [path.name for path in files if not path.is_file()]
    if not missing:
        return
    found = splits_in(folder)
    complete = [
        name for name in found if all((folder / f"{name}{e}").is_file() for e in (IMS, CAPS))
    ]
    raise DataError(
        f"{folder}: {' and '.join(missing)} not found; the precomp layout needs "
        f"{files[0].name} and {files[1].name}. Complete splits there: "
        f"{', '.join(complete) or 'none'}{nearest(split, complete)}; name another with split=NAME "
        "or data.splits.train|val|test=NAME"
    )


def _open_guides(path: Path, rows: int) -> np.ndarray | None:
    """The vectors beside the regions [rows, G] float32, if there are any; they fit into memory."""
    if not path.is_file():
        return None
    shape, dtype, _ = _header(path)
    if dtype.kind != "f" or len(shape) != 2 or shape[0] != rows:
        raise DataError(
            f"{path}: holds {dtype.name} of shape {shape}; expected floats of shape ({rows}, "
            f"width), a vector for each row of the regions"
        )
    try:
        guides = np.load(path, allow_pickle=False).astype(np.float32)
    except ValueError as error:
        raise DataError(f"{path}: truncated ({error}); copy or make it again") from error
    if len(bad := np.flatnonzero(~np.isfinite(guides).all(axis=1))):
        raise DataError(f"{path}: row {bad[0]} is not finite; make the file again")
    return guides


# The region array


def open_regions(path: Path) -> np.ndarray:
    """The array [rows, R, D] in ``path``, memory-mapped; float32 or float16, nothing else.

    Raises DataError for a file that is no .npy, is truncated, or holds another kind of array.
    """
    shape, dtype, expected = _header(path)
    advice = "; write it again with np.save(path, regions.astype(np.float32))"
    if dtype.hasobject:
        raise DataError(f"{path}: holds Python objects, which are never unpickled{advice}")
    if dtype not in (np.dtype("<f4"), np.dtype("<f2")):
        raise DataError(
            f"{path}: holds {dtype.str} ({dtype.name}); expected little-endian float32 or float16"
            + advice
        )
    if len(shape) != 3 or 0 in shape:
        raise DataError(
            f"{path}: has shape {shape}; expected (rows, regions, width), none of them 0"
        )
    if (size := path.stat().st_size) < expected:
        raise DataError(
            f"{path}: truncated: {size} bytes where shape {shape} of {dtype.name} needs {expected};"
            " copy or download it again"
        )
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and number of bytes that the file ought to have."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = read[version](file)
            start = file.tell()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"{path}: not a .npy file that can be read ({error}); expected what np.save writes"
        ) from error
    if fortran:
        raise DataError(f"{path}: is in Fortran order; write np.ascontiguousarray(regions) instead")
    return shape, dtype, start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def check_regions_finite(split: Split, cache_dir: str | Path | None = None) -> None:
    """Look at every region of ``split`` for NaN and infinity, in chunks of about 64 MB.

    With ``cache_dir`` a file that passed is remembered by its path, size and time of change.
    Raises DataError that names the first bad row.
    """
    if split.regions is None:
        return
    path = Path(split.source)
    stamp = _stamp(path, cache_dir) if isinstance(split.regions, np.memmap) else None
    if stamp is not None and stamp.exists():
        return
    for first, chunk in _chunks(split.regions):
        _require_finite(path, chunk, np.arange(len(chunk)), first)
    if stamp is not None:
        atomic_write_or_warn(stamp, lambda file: None, "checked regions")


def _stamp(path: Path, cache_dir: str | Path | None) -> Path | None:
    if cache_dir is None:
        return None
    stat = os.stat(path)
    text = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return Path(cache_dir) / f"finite-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _chunks(regions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, CHUNK_BYTES // max(1, regions[0].nbytes))
    for first in range(0, len(regions), rows):
        # Mapped anew each time: what an old mapping has touched would count as ours.
        array = regions
        if isinstance(regions, np.memmap):
            array = np.load(str(regions.filename), mmap_mode="r", allow_pickle=False)
        yield first, array[first : first + rows]


def _require_finite(path: Path, regions: np.ndarray, rows: np.ndarray, first: int = 0) -> None:
    for row in rows:
        if not np.isfinite(regions[row]).all():
            raise DataError(f"{path}: {bad_row(first + int(row), np.asarray(regions[row]))}")


def bad_row(row: int, values: np.ndarray) -> str:
    """What to say of row ``row`` whose ``values`` [R, D] are not all finite."""
    region, column = np.argwhere(~np.isfinite(values))[0]
    return (
        f"row {row}, region {region}, column {column} is {values[region, column]}; features must "
        "be finite: repair or extract that image again"
    )


def check_same_width(splits: Iterable[Split]) -> None:
    """Raise DataError if the region widths D of ``splits`` differ."""
    known = [split for split in splits if split.regions is not None]
    widths = {split.regions.shape[2] for split in known}  # type: ignore[union-attr]
    if len(widths) > 1:
        listed = ", ".join(f"{s.source}: {s.regions.shape[2]}" for s in known)  # type: ignore[union-attr]
        raise DataError(
            f"the width of a region differs between splits ({listed}); all must come from one "
            "feature extractor"
        )


# The captions


def read_captions(path: Path) -> list[str]:
    """One caption a line, stripped; a byte-order mark and Windows line ends are tolerated.

    Raises DataError with the line number for text that is not UTF-8 and for an empty caption.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8"
        ) from error
    if lines[-1] == "":
        lines.pop()
    captions = [line.strip() for line in lines]
    if not captions:
        raise DataError(f"{path}: is empty; expected one caption a line")
    if "" in captions:
        raise DataError(
            f"{path}, line {captions.index('') + 1}: empty caption; write one, or remove the line "
            "(and its image row, if it has one of its own)"
        )
    return captions


def _fit(ims: Path, regions: np.ndarray, caps: Path, n_captions: int) -> tuple[int, int]:
    """(rows an image, captions an image)."""
    rows = len(regions)
    if n_captions == rows:
        return (LEGACY, LEGACY) if _is_legacy(ims, regions) else (1, 1)
    if n_captions % rows:
        raise DataError(
            f"{caps}: {n_captions} captions do not fit the {rows} rows of {ims.name}; expected "
            f"k captions an image (for k = 5: {5 * rows}) or one line a row. Are both files "
            "complete, and of the same split?"
        )
    return 1, n_captions // rows


def _is_legacy(path: Path, regions: np.ndarray) -> bool:
    """Whether rows come in fives of equal ones; the first and last five are compared in full."""
    if len(regions) % LEGACY:
        return False
    groups = len(regions) // LEGACY
    equal = {}
    for group in np.unique(np.linspace(0, groups - 1, GROUPS_AT_OPEN).astype(np.int64)).tolist():
        parts = slice(None) if group in (0, groups - 1) else slice(0, 1)
        rows = np.asarray(regions[group * LEGACY : (group + 1) * LEGACY, parts])
        equal[group] = bool((rows.view(np.uint8) == rows[:1].view(np.uint8)).all())
    if len(set(equal.values())) > 1:
        odd = min(group for group in equal if equal[group] != equal[0])
        raise DataError(
            f"{path}: as many rows as captions, but rows {LEGACY * odd}-{LEGACY * odd + 4} are "
            f"{'' if equal[odd] else 'not '}equal while rows 0-4 are{'' if equal[0] else ' not'}; "
            "expected every image five times, or one row and one caption an image"
        )
    return equal[0]
