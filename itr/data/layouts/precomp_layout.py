"""Where SCAN's pre-computed regions lie: ``data.root``, or a folder named after the data set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from itr.data.config import DataConfig
from itr.data.layout import ALIASES, listing, root_of, set_names
from itr.data.layouts.precomp import CAPS, IMS, read_split, splits_in
from itr.data.records import Split
from itr.errors import DataError

ENDING = "_precomp"  # of the folder's name


@dataclass(frozen=True)
class Precomp:
    """Folders of SCAN's files; of several that hold a split the first is read."""

    path: Path
    folders: tuple[Path, ...] = ()
    max_dev_captions: int | None = None
    notes: tuple[str, ...] = ()
    layout: str = "precomp"
    holds: str = "regions"

    def splits(self) -> list[str]:
        """Those of which both files are there, or one."""
        return sorted({split for folder in self.folders for split in splits_in(folder)})

    def read(self, split: str) -> Split:
        """One split; its regions are mapped, not loaded."""
        known = self.splits()
        name = split if split in known else ALIASES.get(split, split)
        name = name if name in known else split
        folder = next((f for f in self.folders if name in splits_in(f)), self.path)
        found = read_split(folder, name, self.max_dev_captions)
        return dataclasses.replace(found, notes=(*self.notes, *found.notes))


def find(data: DataConfig) -> Precomp | None:
    """The folder of the data set below ``data.root``; None: there is none.

    Raises DataError where there are several and none bears the name.
    """
    root = root_of(data)
    expected = [root]
    for name in set_names(data.name):
        expected += [root / f"{name}{ENDING}", root / name / "precomp"]
    holding = [folder for folder in expected if splits_in(folder)]
    if holding:
        return Precomp(holding[0], tuple(holding), data.max_dev_captions)
    holding = [folder for folder in sorted(root.glob(f"*{ENDING}")) if splits_in(folder)]
    if not holding:
        return None
    if len(holding) > 1:
        raise DataError(
            f"data.root={data.root}: no precomp layout for data.name={data.name}; expected "
            f"<split>{IMS} and <split>{CAPS} in one of {', '.join(map(str, expected))}; "
            f"found there: {listing(root)}. Type data.name={holding[0].name.removesuffix(ENDING)}"
        )
    note = f"no folder is named after data.name={data.name}: using {holding[0]}"
    return Precomp(holding[0], tuple(holding), data.max_dev_captions, (note,))
