"""Pictures with a class each: a folder of folders, or a set that torchvision reads. K classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset, Subset

from itr.batch import Batch
from itr.data.classification.prompts import SEED, SETS, ClassSet
from itr.data.config import DECODERS
from itr.data.images.decode import decode, read_bytes
from itr.data.images.transforms import Choices, check_view, normalise, transform
from itr.errors import ConfigError, DataError
from itr.instantiate import nearest
from itr.view import PixelView

FOLDER = "folder"


@dataclass
class ClassificationConfig:
    """Options of ``data=imagefolder`` and ``data=torchvision``."""

    name: str
    root: str
    set: str = FOLDER  # folder: <root>/<class>/<picture>; or one of the named sets
    templates: list[str] = field(default_factory=list)  # empty: those of the named set
    classes: str | None = None  # JSON: a list of names, or folder -> name; None: as on disk
    decoder: str = "torchvision"


class ClassificationDataset:
    """``names`` of the K classes, the pictures, and the ``templates`` of their prompts."""

    def __init__(self, config: ClassificationConfig):
        root = Path(config.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root={config.root}: no such folder; type data.root=DIR")
        if config.decoder not in DECODERS:
            raise ConfigError(f"data.decoder={config.decoder}: expected {' or '.join(DECODERS)}")
        self.config = config
        self.pictures, found = self._folder(root) if config.set == FOLDER else self._named(root)
        self.names = _rename(found, config.classes)
        templates = config.templates or list(_find(config.set).templates)
        if bad := [template for template in templates if template.count("{}") != 1]:
            raise ConfigError(
                f"data.templates: {bad[0]!r} has no single {{}} where the class name goes"
            )
        self.templates: list[str] = templates
        self.digest = hashlib.sha256(json.dumps([self.names, self.templates]).encode())

    def __len__(self) -> int:
        return len(self.pictures)  # type: ignore[arg-type]

    @property
    def mean_per_class(self) -> bool:
        """Whether the field reports the mean over classes."""
        return self.config.set != FOLDER and _find(self.config.set).mean_per_class

    def batches(self, view: PixelView, size: int) -> Iterator[tuple[Batch, Tensor]]:
        """Pictures as ``view`` wants them, in order, and their classes [B] int64.

        Afterwards ``digest`` is of all names, templates, pictures and classes. Raises DataError,
        naming the file, for a picture that cannot be read.
        """
        check_view(view)
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            pixels = torch.empty((len(rows), 3, view.size, view.size), dtype=torch.uint8)
            targets = torch.empty(len(rows), dtype=torch.int64)
            for place, row in enumerate(rows):
                picture, target = self._picture(row)
                image = picture if isinstance(picture, Tensor) else _tensor(picture)
                self.digest.update(image.numpy().tobytes() + str(int(target)).encode())
                pixels[place] = transform(image, view, Choices(), self.config.decoder)
                targets[place] = int(target)
            yield Batch(image_id=torch.tensor(rows), pixels=normalise(pixels, view)), targets

    def _picture(self, row: int) -> tuple[Any, int]:
        try:
            return self.pictures[row]
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises in a named set
            raise DataError(
                f"data.root={self.config.root}: picture {row} of {self.config.set} cannot be read "
                f"({error}); copy the set anew"
            ) from error

    def _folder(self, root: Path) -> tuple[Dataset, list[str]]:
        def open_one(path: str) -> Tensor:
            return decode(read_bytes(path), path, self.config.decoder)

        try:
            pictures = torchvision.datasets.ImageFolder(str(root), loader=open_one)
        except FileNotFoundError as error:
            raise DataError(
                f"data.root={root}: expected a folder for each class with pictures in it "
                f"({str(error).splitlines()[0]})"
            ) from error
        return pictures, [name.replace("_", " ") for name in pictures.classes]

    def _named(self, root: Path) -> tuple[Dataset, list[str]]:
        chosen = _find(self.config.set)
        reader = getattr(torchvision.datasets, chosen.reader)
        try:
            pictures = reader(str(root), **chosen.options)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"data.root={root}: torchvision's {chosen.reader} cannot be read there "
                f"({str(error).splitlines()[0]})"
            ) from error
        names = getattr(pictures, "classes", None) or pictures.categories
        names = [name[0] if isinstance(name, tuple) else name for name in names]
        if chosen.part is not None:
            order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(SEED))
            pictures = Subset(pictures, order[-chosen.part :].tolist())
        # SUN397 writes "apartment building/outdoor".
        return pictures, [name.replace("_", " ").replace("/", " ") for name in names]


def _find(name: str) -> ClassSet:
    if name not in SETS:
        raise ConfigError(
            f"data.set={name}: unknown{nearest(name, SETS)} (known: {FOLDER}, {', '.join(SETS)})"
        )
    return SETS[name]


def _rename(found: Sequence[str], path: str | None) -> list[str]:
    """``found`` as the JSON file says: a list in their order, or found name -> name."""
    if path is None:
        return list(found)
    try:
        told: Any = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"data.classes={path}: cannot be read ({error})") from error
    if isinstance(told, list) and len(told) == len(found):
        return [str(name) for name in told]
    if isinstance(told, dict) and not (missing := [name for name in found if name not in told]):
        return [str(told[name]) for name in found]
    lacks = f"no name for {missing[:3]}" if isinstance(told, dict) else f"{len(told)} names"
    raise DataError(f"data.classes={path}: {lacks}; expected one for each of {len(found)} classes")


def _tensor(picture: Any) -> Tensor:
    return torchvision.transforms.functional.pil_to_tensor(picture.convert("RGB"))
