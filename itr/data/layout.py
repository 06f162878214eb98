"""The interface of a dataset layout, and helpers that find its files and splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from itr.data.config import DataConfig
from itr.data.records import Record, Split
from itr.errors import DataError, first_of

MAX_LISTED = 12  # file names listed in a message
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
RECORDIO = "*.rec"
FILE_PREFIXES = {"f30k": "flickr30k"}  # data.name -> name of the dataset in file names
SECOND = "second"  # key of Record.extra: the second text
COCO_ID = re.compile(r"(?:COCO_\w+?_)?(\d{12})\.\w+$")  # COCO_val2014_000000391895.jpg


class Layout(Protocol):
    """A dataset in one on-disk layout, below one folder."""

    @property
    def name(self) -> str:
        """Name of the layout: ``karpathy``, ``precomp``, ..."""
        ...

    @property
    def kind(self) -> str:
        """What it holds of an image: ``regions`` or ``pixels``."""
        ...

    @property
    def path(self) -> Path:
        """The file or folder that logs and messages name."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Log lines about how the files were chosen."""
        ...

    def splits(self) -> Iterable[str]:
        """Names of the splits on disk; a dictionary if their numbers of images are known.

        Raises DataError for files that cannot be read.
        """
        ...

    def read(self, split: str) -> Split:
        """Read ``split``, given by its name on disk or its name in another layout.

        Raises DataError that names the file for anything unusable.
        """
        ...


@dataclass(frozen=True)
class LayoutSpec:
    """What a layout module says about itself, in its constant ``LAYOUT``."""

    name: str  # of data.layout=NAME
    kind: str  # what it holds of an image: ``regions`` or ``pixels``
    preference: int  # of several layouts in a folder, the one with the smallest number is used
    files: str  # example of its files, for messages; ``{name}`` is data.name
    second: bool = False  # it can hold a second text per image, such as synthetic captions


def second_texts(
    records: Sequence[Record], where: str, remark: str
) -> tuple[list[str] | None, tuple[str, ...]]:
    """The second text of each image, or None unless all have one, and a note if only some have.

    ``where`` names the file and the images in the note, ``remark`` what is missing.
    """
    texts = [record.extra.get(SECOND) for record in records]
    second = [text for text in texts if text is not None]
    if len(second) == len(texts):
        return second, ()
    note = f"{where}: {len(texts) - len(second)} of {len(texts)} images of {remark}"
    return None, (note,) if second else ()


def data_root(data: DataConfig) -> Path:
    """The folder ``data.root``. Raises DataError if it does not exist."""
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        raise DataError(
            f"data.root={data.root}: no such folder; expected region arrays (<split>_ims.npy and "
            f"<split>_caps.txt, also in {data.name}_precomp/ or {data.name}/precomp/), images "
            "with dataset_*.json or another caption file, or tar shards. Pass data.root=DIR"
        )
    return root


def recordio_advice(root: Path) -> str:
    """What to do with the MXNet RecordIO files of a folder, for a message; empty if there are none.

    ALIP's authors use them. They are converted, not read by training.
    """
    if not any(root.glob(RECORDIO)):
        return ""
    return (
        f" MXNet's {RECORDIO} files are not read by training: convert them with itr data convert "
        f"{root} {root}/wds, then pass data.shards={root}/wds."
    )


def is_junk(name: str) -> bool:
    """Whether a file or folder was added by a system: ``._a.jpg``, ``__MACOSX``."""
    return name.startswith("._") or name in JUNK


def list_folder(folder: Path) -> str:
    """The first file names in ``folder``, for a message."""
    names = sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir())
    return first_of(names, MAX_LISTED) or "nothing"


def file_prefixes(name: str) -> list[str]:
    """Names of dataset ``name`` in file names, preferred ones first."""
    return list(dict.fromkeys((name, FILE_PREFIXES.get(name, name))))


def coco_id(file: str) -> int | None:
    """The COCO image id at the end of a file name; None for other names."""
    match = COCO_ID.search(file)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one dataset in one folder, by split."""

    folder: Path
    by_split: dict[str, Path]
    notes: tuple[str, ...] = ()


def find_dataset_files(
    folders: Iterable[Path], pattern: re.Pattern[str], name: str
) -> DatasetFiles | None:
    """Files of dataset ``name`` that match ``pattern`` (with groups ``name`` and ``split``).

    Only the first of ``folders`` with a matching file is used. Raises DataError if it holds several
    datasets and none is called ``name``.
    """
    for folder in folders:
        datasets = _group_by_dataset(folder, pattern)
        if not datasets:
            continue
        for prefix in (*file_prefixes(name), ""):
            if prefix in datasets:
                return DatasetFiles(folder, datasets[prefix], _unread(folder, datasets, prefix))
        if len(datasets) > 1:
            examples = [min(path.name for path in files.values()) for files in datasets.values()]
            raise DataError(
                f"{folder}: holds several datasets ({first_of(examples, MAX_LISTED)}), none of "
                f"them called {name}. Pass data.name={next(iter(datasets))} to choose one"
            )
        ((prefix, files),) = datasets.items()
        note = f"no file is named after data.name={name}: using {prefix}_* in {folder}"
        return DatasetFiles(folder, files, (note,))
    return None


def _unread(folder: Path, datasets: dict[str, dict[str, Path]], chosen: str) -> tuple[str, ...]:
    """A note about the files of other datasets in the folder."""
    others = [
        path.name
        for prefix, files in datasets.items()
        if prefix != chosen
        for path in files.values()
    ]
    if not others:
        return ()
    return (f"{folder}: files of other names are ignored: {first_of(sorted(others), MAX_LISTED)}",)


def _group_by_dataset(folder: Path, pattern: re.Pattern[str]) -> dict[str, dict[str, Path]]:
    """Matching files by dataset name, then by split."""
    datasets: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match and path.is_file() and not is_junk(path.name):
            files, split = datasets.setdefault(match["name"] or "", {}), match["split"].lower()
            if (other := files.get(split)) is not None:
                raise DataError(
                    f"{folder}: {other.name} and {path.name} are both split '{split}'; remove one "
                    "of them"
                )
            files[split] = path
    return datasets
