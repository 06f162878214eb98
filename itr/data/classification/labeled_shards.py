"""Reads tars of images with class numbers, ``KEY.jpg`` and ``KEY.cls``, as clip-benchmark has them.

Beside them are ``classnames.txt`` and ``zeroshot_classification_templates.txt``, whose lines hold
``{c}`` for the class name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from torch import Tensor
from torch.utils.data import Dataset

from itr.data.image_files import image_extensions
from itr.data.images.decode import read_bytes
from itr.data.layout import is_junk, list_folder
from itr.data.layouts.shards.members import SampleMembers
from itr.data.layouts.shards.tar import TarReader
from itr.data.records import Slice
from itr.errors import DataError

CLASSES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
SPLIT = "test"  # the folder that is evaluated
LABEL = "cls"
PLACEHOLDER = "{c}"


class LabeledShards(Dataset):
    """The images of all tars, with their ``classes`` and prompt ``templates`` (may be empty)."""

    def __init__(self, root: Path, open_one: Callable[[bytes, str], Tensor]):
        """Index the tars in ``root``, or in its folder ``test``.

        Raises DataError that names the tar and the sample for anything that cannot be evaluated.
        """
        folder = root / SPLIT if (root / SPLIT).is_dir() else root
        tars = sorted(path for path in folder.glob("*.tar") if not is_junk(path.name))
        if not tars:
            raise DataError(
                f"data.root={root}: no .tar there or in {SPLIT}/; it holds {list_folder(root)}. "
                "Pass data.root=DIR with DIR/test/*.tar, or data=imagefolder for class folders"
            )
        self.classes = _lines(folder, CLASSES)
        self.templates = [line.replace(PLACEHOLDER, "{}") for line in _lines(folder, TEMPLATES)]
        self.open_one = open_one
        self.samples: list[tuple[Slice, int]] = []
        for path in tars:
            self.samples += _samples_of(path)
        highest = max(self.samples, key=lambda sample: sample[1], default=None)
        if highest is None:
            raise DataError(f"{folder}: its {len(tars)} tars hold no sample")
        if not self.classes:
            raise DataError(
                f"{folder}: no {CLASSES} there or in {folder.parent}; expected one class name in "
                "each line. Write it (data.classes=FILE only renames its classes)"
            )
        if highest[1] >= len(self.classes):
            raise DataError(
                f"{highest[0].path}: class {highest[1]} is not in {CLASSES}, which has "
                f"{len(self.classes)} lines, numbered from 0; complete it"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.samples[index]
        return self.open_one(read_bytes(image), f"{image.path}, byte {image.offset}"), target


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of a file in ``folder`` or above it; empty if there is none."""
    paths = [path for path in (folder / name, folder.parent / name) if path.is_file()]
    if not paths:
        return []
    try:
        lines = paths[0].read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{paths[0]}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(
            f"{paths[0]}, line {names.index('') + 1}: blank, and the number of a line counts; "
            "expected a text in each"
        )
    return names


def _samples_of(path: Path) -> list[tuple[Slice, int]]:
    with path.open("rb") as file:
        reader = TarReader(file, path.stat().st_size)
        samples = [_sample(path, file, members) for members in reader]
    if reader.fault:
        raise DataError(f"{path}: {reader.fault}; evaluation needs every image: copy it again")
    return samples


def _sample(path: Path, file: IO[bytes], sample: SampleMembers) -> tuple[Slice, int]:
    where, extensions = f"{path}: {sample.key.lstrip('/')}", image_extensions()
    images: list[Any] = [kind for kind in sample.members if kind in extensions]
    label = sample.members.get(LABEL)
    if not images or label is None:
        found = ", ".join(sorted(sample.members))
        raise DataError(f"{where}: has {found}; expected an image and a .{LABEL}")
    file.seek(label.offset_data)
    text = file.read(min(label.size, 32)).decode("latin-1").strip()
    if not text.isascii() or not text.isdigit():
        raise DataError(f"{where}.{LABEL}: is {text!r}; expected the number of a class")
    image = sample.members[min(images, key=extensions.__getitem__)]
    return Slice(str(path), image.offset_data, image.size), int(text)
