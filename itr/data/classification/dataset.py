"""Image classification datasets: a folder per class, or a dataset of torchvision. K classes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset, Subset

from itr.batch import Batch
from itr.data.classification.labeled_shards import TEMPLATES, LabeledShards
from itr.data.classification.prompts import DATASETS, SEED, ClassificationSpec
from itr.data.config import DECODERS
from itr.data.image_files import files_below, is_image
from itr.data.images.decode import decode, read_bytes
from itr.data.images.transforms import Choices, check_view, normalize, transform
from itr.data.layout import is_junk
from itr.errors import ConfigError, DataError, first_of, nearest
from itr.files import parse_json
from itr.options import configured, option
from itr.view import PixelView

FOLDER, SHARDS = "folder", "shards"  # of data.set


@dataclass
@configured("data/imagefolder.yaml", "data")
class ClassificationConfig:
    """Options of ``data=imagefolder``, ``data=labeled_shards`` and ``data=torchvision``."""

    name: str
    root: str
    set: str = option()
    templates: list[str] = option()
    classes: str | None = option()
    decoder: str = option(choices=DECODERS)


class ClassificationDataset:
    """The images, the ``names`` of the K classes, and the prompt ``templates``."""

    def __init__(self, config: ClassificationConfig):
        root = Path(config.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root={config.root}: no such folder; pass data.root=DIR")
        if config.decoder not in DECODERS:
            raise ConfigError(f"data.decoder={config.decoder}: expected {' or '.join(DECODERS)}")
        self.config = config
        self.notes: tuple[str, ...] = ()  # log lines
        readers = {FOLDER: self._read_folder, SHARDS: self._read_shards}
        read = readers.get(config.set, self._read_torchvision)
        self.images, class_names = read(root)
        self.names = _rename(class_names, config.classes)
        templates = config.templates or self._own_templates()
        if bad := [template for template in templates if template.count("{}") != 1]:
            raise ConfigError(
                f"data.templates: {bad[0]!r}; expected exactly one {{}} for the class name in each"
            )
        self.templates: list[str] = templates
        self.digest = hashlib.sha256(json.dumps([self.names, self.templates]).encode())

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    @property
    def mean_per_class(self) -> bool:
        """Whether the mean accuracy over classes is reported."""
        if self.config.set in (FOLDER, SHARDS):
            return False
        return _find_spec(self.config.set).mean_per_class

    def _own_templates(self) -> list[str]:
        """The prompts of the dataset. Raises ConfigError if it has none."""
        if isinstance(self.images, LabeledShards):
            if not self.images.templates:
                raise ConfigError(
                    f"data.root={self.config.root}: no {TEMPLATES} there; pass "
                    "'data.templates=[\"a photo of a {}.\"]'"
                )
            return self.images.templates
        return list(_find_spec(self.config.set).templates)

    def batches(self, view: PixelView, size: int) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches of up to ``size`` images, preprocessed for ``view``, and classes [B] int64.

        After the last batch, ``digest`` is a hash of all class names, templates, images and
        classes. Raises DataError, naming the file, for an image that cannot be read.
        """
        check_view(view)
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            pixels = torch.empty((len(rows), 3, view.size, view.size), dtype=torch.uint8)
            targets = torch.empty(len(rows), dtype=torch.int64)
            for index, row in enumerate(rows):
                image, target = self._read_image(row)
                self.digest.update(image.numpy().tobytes() + str(int(target)).encode())
                pixels[index] = transform(image, view, Choices(), self.config.decoder)
                targets[index] = int(target)
            yield Batch(image_id=torch.tensor(rows), pixels=normalize(pixels, view)), targets

    def _read_image(self, row: int) -> tuple[Tensor, int]:
        """uint8 [3, H, W] and the class."""
        try:
            image, target = self.images[row]
        except (OSError, SyntaxError, ValueError) as error:  # raised by Pillow inside torchvision
            raise DataError(
                f"data.root={self.config.root}: image {row} of {self.config.set} cannot be read "
                f"({error}); copy or download the dataset again"
            ) from error
        return (image if isinstance(image, Tensor) else _to_tensor(image)), target

    def _read_folder(self, root: Path) -> tuple[Dataset, list[str]]:
        def open_one(path: str) -> Tensor:
            return decode(read_bytes(path), path, self.config.decoder)

        images = _FolderImages(*_images_of_classes(root), open_one)
        self.notes = images.notes
        return images, [name.replace("_", " ") for name in images.classes]

    def _read_shards(self, root: Path) -> tuple[Dataset, list[str]]:
        def open_one(content: bytes, where: str) -> Tensor:
            return decode(content, where, self.config.decoder)

        images = LabeledShards(root, open_one)
        return images, images.classes

    def _read_torchvision(self, root: Path) -> tuple[Dataset, list[str]]:
        spec = _find_spec(self.config.set)
        reader = getattr(torchvision.datasets, spec.reader)
        try:
            images = reader(str(root), **spec.options)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"data.root={root}: torchvision.datasets.{spec.reader} cannot read this folder "
                f"({str(error).splitlines()[0]}); download the dataset there"
            ) from error
        names = getattr(images, "classes", None) or images.categories
        names = [name[0] if isinstance(name, tuple) else name for name in names]
        if spec.subset is not None:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
            images = Subset(images, order[-spec.subset :].tolist())
        # Class names of SUN397 look like "apartment building/outdoor".
        return images, [name.replace("_", " ").replace("/", " ") for name in names]


class _FolderImages(Dataset):
    """The images in a folder of class folders, and log lines about files that are none."""

    def __init__(
        self,
        files: dict[str, list[str]],
        others: list[str],
        open_one: Callable[[str], Tensor],
    ):
        self.classes = list(files)
        self.samples = [(path, n) for n, paths in enumerate(files.values()) for path in paths]
        self.open_one = open_one
        self.notes: tuple[str, ...] = ()
        if others:
            self.notes = (f"{len(others)} files are no images: {first_of(others)}",)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, target = self.samples[index]
        return self.open_one(path), target


def _images_of_classes(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Class -> images in and below its folder, and the files that are no images.

    Raises DataError if there is no class folder, or one without an image.
    """
    folders = sorted(f.name for f in os.scandir(root) if f.is_dir() and not is_junk(f.name))
    images: dict[str, list[str]] = {}
    others: list[str] = []
    for name in folders:
        images[name] = []
        for path in files_below(root / name):
            (images[name] if is_image(path) else others).append(path)
    empty = [name for name, paths in images.items() if not paths]
    if empty or not images:
        found = f"no image in {first_of(empty)}" if empty else "no folder there"
        raise DataError(
            f"data.root={root}: expected one folder of images per class ({found}); remove folders "
            "that are no class, or pass data.root=DIR (data=labeled_shards for .tar files)"
        )
    return images, others


def _find_spec(name: str) -> ClassificationSpec:
    if name not in DATASETS:
        raise ConfigError(
            f"data.set={name}: unknown{nearest(name, DATASETS)}; expected {FOLDER}, {SHARDS} or "
            f"{', '.join(DATASETS)}"
        )
    return DATASETS[name]


def _rename(names: Sequence[str], path: str | None) -> list[str]:
    """``names`` replaced by those of a JSON file: a list in the same order, or a mapping."""
    if path is None:
        return list(names)
    try:
        renamed: Any = parse_json(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"data.classes={path}: cannot be read ({error})") from error
    if isinstance(renamed, list) and len(renamed) == len(names):
        return [str(name) for name in renamed]
    if isinstance(renamed, dict):
        missing = [name for name in names if name not in renamed]
        if not missing:
            return [str(renamed[name]) for name in names]
        fault = f"no name for {first_of(missing)}"
    else:
        fault = f"{len(renamed)} names"
    raise DataError(
        f"data.classes={path}: {fault}; expected a name for each of the {len(names)} classes"
    )


def _to_tensor(image: Any) -> Tensor:
    return torchvision.transforms.functional.pil_to_tensor(image.convert("RGB"))
