"""Reader for SCAN's precomputed regions: ``<split>_ims.npy`` beside ``<split>_caps.txt``.

The array [rows, R, D] stays on disk (33 GB for COCO) and is memory-mapped, read-only. Optional
files: ``<split>_clip.npy`` [rows, G] with one more vector per image, ``<split>_ids.txt`` with image
ids, ``<split>_capids.txt`` with caption ids, and ``id_mapping.json`` with image file names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itr.data.config import DataConfig
from itr.data.layout import LayoutSpec, data_root, file_prefixes, is_junk, list_folder
from itr.data.layouts.precomp_ids import read_ids
from itr.data.layouts.region_arrays import open_guides, open_regions, require_finite
from itr.data.records import Record, Split
from itr.data.splits import resolve_split
from itr.errors import DataError, nearest

IMS, CAPS, GUIDES = "_ims.npy", "_caps.txt", "_clip.npy"
FOLDER_SUFFIX = "_precomp"
REPEATS = 5  # published dev and test files repeat each image row once per caption
ROWS_AT_OPEN = 32  # rows checked for NaN when a split is opened
GROUPS_AT_OPEN = 64  # groups of five rows compared when a split is opened
LAYOUT = LayoutSpec("precomp", "regions", 0, "<split>_ims.npy")


@dataclass(frozen=True)
class PrecompLayout:
    """Folders of SCAN's files. If several of them hold a split, the first is read."""

    path: Path
    folders: tuple[Path, ...] = ()
    max_dev_captions: int | None = None
    notes: tuple[str, ...] = ()
    name: str = "precomp"
    kind: str = "regions"

    def splits(self) -> list[str]:
        """The splits that have at least one of the two files."""
        return sorted({split for folder in self.folders for split in splits_in(folder)})

    def read(self, split: str) -> Split:
        """Read one split. The region array is mapped, not loaded."""
        advice = f", or put {split}{IMS} and {split}{CAPS} there"
        key = resolve_split(split, self.splits(), str(self.path), advice)
        folder = next((f for f in self.folders if key in splits_in(f)), self.path)
        result = read_split(folder, key, self.max_dev_captions)
        return dataclasses.replace(result, notes=(*self.notes, *result.notes))


def find(data: DataConfig) -> PrecompLayout | None:
    """The folder of the dataset, at or below ``data.root``; None if there is none.

    Raises DataError if there are several and none is named after the dataset.
    """
    root = data_root(data)
    expected = [root]
    for prefix in file_prefixes(data.name):
        expected += [root / f"{prefix}{FOLDER_SUFFIX}", root / prefix / "precomp"]
    folders = [folder for folder in expected if splits_in(folder)]
    if folders:
        return PrecompLayout(folders[0], tuple(folders), data.max_dev_captions)
    folders = [folder for folder in sorted(root.glob(f"*{FOLDER_SUFFIX}")) if splits_in(folder)]
    if not folders:
        return None
    if len(folders) > 1:
        raise DataError(
            f"data.root={data.root}: no precomp layout for data.name={data.name}; expected "
            f"<split>{IMS} and <split>{CAPS} in one of {', '.join(map(str, expected))}. The folder "
            f"holds {list_folder(root)}. Pass "
            f"data.name={folders[0].name.removesuffix(FOLDER_SUFFIX)}"
        )
    note = f"no folder is named after data.name={data.name}: using {folders[0]}"
    return PrecompLayout(folders[0], tuple(folders), data.max_dev_captions, (note,))


def splits_in(folder: Path) -> list[str]:
    """Names of the splits of which ``folder`` holds at least one of the two files."""
    return sorted(
        {
            path.name.removesuffix(end)
            for end in (IMS, CAPS)
            for path in folder.glob(f"*{end}")
            if not is_junk(path.name)
        }
    )


def read_split(folder: str | Path, split: str, max_dev_captions: int | None = None) -> Split:
    """Read the split called ``split`` on disk. The region array is mapped, not loaded.

    ``max_dev_captions`` cuts a split named ``dev`` to its first captions, as the authors do.
    Only a sample of the features is checked here; `check_regions_finite` checks all of them. Raises
    DataError that names the file for anything unusable.
    """
    folder = Path(folder)
    ims, caps = folder / f"{split}{IMS}", folder / f"{split}{CAPS}"
    _require_files(folder, split, ims, caps)
    regions = open_regions(ims)
    captions = read_captions(caps)
    step, per_image = _match_counts(ims, regions, caps, len(captions))
    notes = []
    if step > 1:
        notes.append(f"{ims}: each image row is repeated {step} times; one of them is read")
    n_captions = len(captions)
    if max_dev_captions is not None and split == "dev" and max_dev_captions < n_captions:
        n_captions = max_dev_captions
        notes.append(
            f"{caps}: cut to the first {n_captions} of {len(captions)} captions "
            f"(data.max_dev_captions={max_dev_captions})"
        )
    records = _make_records(folder, split, captions[:n_captions], len(regions), step, per_image)
    notes += _check_sample(ims, regions)
    guides = open_guides(folder / f"{split}{GUIDES}", len(regions))
    return Split(split, "precomp", records, regions, guides, source=str(ims), notes=tuple(notes))


def _make_records(
    folder: Path, split: str, captions: list[str], rows: int, step: int, per_image: int
) -> list[Record]:
    """Records of ``per_image`` consecutive captions and every ``step``-th row."""
    ids = read_ids(folder, split, rows, step, per_image)
    n_captions = len(captions)
    return [
        Record(
            image_id=ids.images[number],
            image=number * step,
            captions=tuple(captions[first : first + per_image]),
            caption_ids=tuple(ids.captions[first : min(first + per_image, n_captions)]),
            extra={"file": ids.files[number]} if ids.files else {},
        )
        for number, first in enumerate(range(0, n_captions, per_image))
    ]


def _check_sample(ims: Path, regions: np.ndarray) -> list[str]:
    """Check some rows for NaN (raises DataError) and constant values (returns notes)."""
    rows = np.unique(np.linspace(0, len(regions) - 1, ROWS_AT_OPEN).astype(np.int64))
    require_finite(ims, regions, rows)
    flat = [row for row in rows.tolist() if np.ptp(regions[row]) == 0]
    if not flat:
        return []
    return [
        f"{ims}: {len(flat)} of {len(rows)} checked rows hold one value only (first: row "
        f"{flat[0]}); feature extraction probably failed for these images"
    ]


def _require_files(folder: Path, split: str, *files: Path) -> None:
    missing = [path.name for path in files if not path.is_file()]
    if not missing:
        return
    complete = [
        name
        for name in splits_in(folder)
        if all((folder / f"{name}{end}").is_file() for end in (IMS, CAPS))
    ]
    raise DataError(
        f"{folder}: {' and '.join(missing)} not found; the precomp layout needs "
        f"{files[0].name} and {files[1].name}. Complete splits there: "
        f"{', '.join(complete) or 'none'}{nearest(split, complete)}. Pass split=NAME or "
        "data.splits.train|val|test=NAME"
    )


def read_captions(path: Path) -> list[str]:
    """Read one caption per line, stripped. Tolerates a byte-order mark and Windows line endings.

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
        raise DataError(f"{path}: is empty; expected one caption per line")
    if "" in captions:
        raise DataError(
            f"{path}, line {captions.index('') + 1}: empty caption; write one, or remove the line "
            "(and the image row that belongs to it alone, if any)"
        )
    return captions


def _match_counts(ims: Path, regions: np.ndarray, caps: Path, n_captions: int) -> tuple[int, int]:
    """(rows per image, captions per image)."""
    rows = len(regions)
    if n_captions == rows:
        return (REPEATS, REPEATS) if _repeats_rows(ims, regions) else (1, 1)
    if n_captions % rows:
        raise DataError(
            f"{caps}: {n_captions} captions do not fit the {rows} rows of {ims.name}; expected "
            f"k captions per image (for k = 5: {5 * rows}) or one line per row. Check that both "
            "files are complete and belong to the same split"
        )
    return 1, n_captions // rows


def _repeats_rows(path: Path, regions: np.ndarray) -> bool:
    """Whether rows come in groups of five equal ones.

    The first and the last group are compared in full, a sample of the others by one region.
    """
    if len(regions) % REPEATS:
        return False
    groups = len(regions) // REPEATS
    equal = {}
    for group in np.unique(np.linspace(0, groups - 1, GROUPS_AT_OPEN).astype(np.int64)).tolist():
        compared = slice(None) if group in (0, groups - 1) else slice(0, 1)
        rows = np.asarray(regions[group * REPEATS : (group + 1) * REPEATS, compared])
        equal[group] = bool((rows.view(np.uint8) == rows[:1].view(np.uint8)).all())
    if len(set(equal.values())) > 1:
        odd = min(group for group in equal if equal[group] != equal[0])
        first = REPEATS * odd
        raise DataError(
            f"{path}: as many rows as captions, but rows {first}-{first + 4} are "
            f"{'' if equal[odd] else 'not '}equal while rows 0-4 are{'' if equal[0] else ' not'}; "
            "expected each image five times, or one row and one caption per image"
        )
    return equal[0]
