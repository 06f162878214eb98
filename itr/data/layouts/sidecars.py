"""Reader for a folder of images with a caption beside each: ``a.jpg`` with ``a.txt``.

img2dataset's output "files" is such a folder, with a ``.json`` beside each image, too.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from itr.data.config import DataConfig
from itr.data.ids import number_ids
from itr.data.image_files import image_extensions
from itr.data.layout import SECOND, LayoutSpec, coco_id, data_root, is_junk, second_texts
from itr.data.layouts.held_out_images import hold_out
from itr.data.records import Record, Split
from itr.data.splits import ROLES, held_out_roles, resolve_split, roles_in
from itr.errors import DataError, first_of
from itr.files import parse_json

TEXTS = (".txt", ".caption", ".captions")  # endings of captions, preferred ones first
META = ".json"
CAPTION_KEYS = ("caption", "text")  # of the .json of an image without a text
PROBED = 20  # images of a folder that are looked at for a caption beside them
PROBED_FOLDERS = 200
LAYOUT = LayoutSpec("folder", "pixels", 7, "NAME.jpg with NAME.txt", second=True)


class Captioned(NamedTuple):
    """An image and the files beside it, relative to the folder."""

    image: str
    text: str | None
    meta: str | None


@dataclass(frozen=True)
class SidecarLayout:
    """The captioned images in a folder and its subfolders, by split."""

    path: Path
    second_key: str = "synthetic_caption"
    held_out: float | str | None = 0
    max_broken: float = 0.01
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    name: str = "folder"
    kind: str = "pixels"

    def splits(self) -> dict[str, int]:
        """The splits, held-out ones included, and their numbers of images."""
        return {name: len(records) for name, records in self._records()[0].items()}

    def read(self, split: str) -> Split:
        """Read one split. Opens no image. Raises DataError if too many have no usable caption."""
        splits, notes = self._records()
        advice = ", or data.held_out=0.05 to hold out images of train"
        key = resolve_split(split, splits, str(self.path), advice)
        records = splits[key]
        remark = f"{key} have no {self.second_key}; none of them is used"
        second, missing = second_texts(records, str(self.path), remark)
        return Split(
            key,
            self.name,
            records,
            second=second,
            decoder=self.decoder,
            source=str(self.path),
            notes=(*self.notes, *notes, *missing),
        )

    def _records(self) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
        files, texts, state = _list_files(self.path)
        splits, notes = _read_records(
            self.path, tuple(files), self.second_key, self.max_broken, state
        )
        if texts:
            without = f"{len(texts)} texts have no image beside them: {first_of(texts)}"
            notes = (*notes, f"{self.path}: {without}")
        if missing := held_out_roles(splits, self.held_out):
            rest = dict(splits)
            train = resolve_split("train", rest, str(self.path))
            parts = hold_out(rest.pop(train), missing, self.held_out, str(self.path))
            count = f"{len(parts[missing[0]])} of {sum(map(len, parts.values()))} images of train"
            note = f"{self.path}: no {' and '.join(missing)}: {count} are held out for each"
            splits = {train: parts.pop("train"), **rest, **parts}
            notes = (*notes, f"{note} (data.held_out)")
        return splits, notes


def find(data: DataConfig) -> SidecarLayout | None:
    """The folder ``data.root`` (or ``data.images``) if images in it have captions beside them."""
    root = data_root(data) if data.images is None else Path(data.images).expanduser()
    if not root.is_dir() or not _has_captions(root):
        return None
    return SidecarLayout(root, data.second_key, data.held_out, data.max_broken, data.decoder)


def _walk(root: Path) -> Iterator[tuple[str, set[str]]]:
    """(folder relative to ``root``, names of its files), in sorted order, without junk."""
    for here, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        folder = os.path.relpath(here, root)
        yield "" if folder == "." else folder, {name for name in files if not is_junk(name)}


def _has_captions(root: Path) -> bool:
    """Whether one of the first images of a folder has a text or a .json with a caption."""
    for folder, names in itertools.islice(_walk(root), PROBED_FOLDERS):
        images = [name for name in sorted(names) if _is_image(name)]
        for name in images[:PROBED]:
            beside = _beside(folder, name, names)
            if beside.text is not None:
                return True
            if beside.meta is not None and _caption_in(_load(root / beside.meta)):
                return True
    return False


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower().lstrip(".") in image_extensions()


def _beside(folder: str, name: str, names: set[str]) -> Captioned:
    """The files beside an image: ``a.txt``, or else ``a.jpg.txt``."""
    stem = os.path.splitext(name)[0]

    def first(endings: tuple[str, ...]) -> str | None:
        candidates = (f"{base}{ending}" for base in (stem, name) for ending in endings)
        found = next((candidate for candidate in candidates if candidate in names), None)
        return None if found is None else os.path.join(folder, found)

    return Captioned(os.path.join(folder, name), first(TEXTS), first((META,)))


def _list_files(root: Path) -> tuple[list[Captioned], list[str], int]:
    """All images, texts beside none, and a number that changes if files are added or removed."""
    images, texts, times = list[Captioned](), list[str](), list[int]()
    for folder, names in _walk(root):
        here = [_beside(folder, name, names) for name in sorted(names) if _is_image(name)]
        used = {os.path.basename(image.text) for image in here if image.text is not None}
        left = (name for name in sorted(names - used) if name.lower().endswith(TEXTS))
        texts += [os.path.join(folder, name) for name in left]
        images += here
        times.append((root / folder).stat().st_mtime_ns)
    return images, texts, hash(tuple(times))


@functools.lru_cache(maxsize=1)  # train, val and test are read one after the other
def _read_records(
    root: Path, files: tuple[Captioned, ...], second_key: str, max_broken: float, state: int
) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
    """Records by split, and notes. Raises DataError if too many images have no caption."""
    images: list[tuple[Captioned, list[str], str | None]] = []
    faults: list[str] = []
    bare: list[str] = []
    captioned = {os.path.dirname(file.image) for file in files if file.text or file.meta}
    for file in files:
        if os.path.dirname(file.image) not in captioned:
            bare.append(file.image)
            continue
        meta = {} if file.meta is None else _load(root / file.meta)
        texts = _texts(root, file, meta)
        if isinstance(texts, str):
            faults.append(f"{file.text or file.image}: {texts}")
            continue
        second = meta.get(second_key) if isinstance(meta, dict) else None
        second = second.strip() if isinstance(second, str) and second.strip() else None
        images.append((file, texts, second))
    notes = _fault_notes(root, faults, len(files) - len(bare), max_broken, bool(images))
    if bare:
        where = f"{len(bare)} images in folders without captions are not read: {first_of(bare)}"
        notes = (*notes, f"{root}: {where}")
    ids = number_ids(
        [coco_id(file.image) for file, _, _ in images], [str(root)] * len(images), "image"
    )
    splits: dict[str, list[Record]] = {}
    first = 0
    for index, (file, texts, second) in enumerate(images):
        extra = ids.extra(index) | {"key": os.path.splitext(os.path.basename(file.image))[0]}
        if second is not None:
            extra[SECOND] = second
        numbers = tuple(range(first, first := first + len(texts)))
        path = str(root / file.image)
        record = Record(ids.numbers[index], path, tuple(texts), numbers, extra)
        splits.setdefault(_split_of(root, file.image), []).append(record)
    return {role: splits[role] for role in ROLES if role in splits}, (*notes, *ids.notes)


def _fault_notes(
    root: Path, faults: list[str], total: int, max_broken: float, some: bool
) -> tuple[str, ...]:
    """A note about images that are left out. Raises DataError if there are too many."""
    if not faults:
        return ()
    count = f"{len(faults)} of {total} images have no usable caption: {first_of(faults)}"
    if not some or len(faults) > max_broken * total:
        raise DataError(
            f"{root}: {count}; that is more than data.max_broken={max_broken:g} allows. Write "
            "NAME.txt beside each image, remove those without, or pass a larger data.max_broken"
        )
    return (f"{root}: left out: {count}",)


def _texts(root: Path, file: Captioned, meta: Any) -> list[str] | str:
    """The captions of an image; a word about what is wrong if there are none."""
    if file.text is None:
        return _caption_in(meta) or ("no text beside it" if file.meta is None else "no caption")
    try:
        text = (root / file.text).read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "not UTF-8"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return [text] if text else "an empty text"


def _caption_in(meta: Any) -> list[str]:
    """The captions in the .json beside an image; empty if there are none."""
    found: Any = meta if isinstance(meta, list) else None
    if isinstance(meta, dict):
        found = next((meta[key] for key in ("captions", *CAPTION_KEYS) if meta.get(key)), None)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        return []
    return [text.strip() for text in found if text.strip()]


def _load(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _split_of(root: Path, image: str) -> str:
    """The split that a folder of the image is named after; otherwise train.

    Raises DataError for a folder that names several.
    """
    for name in os.path.dirname(image).split(os.sep):
        roles = roles_in(name)
        if len(roles) > 1:
            raise DataError(
                f"{root / image}: the folder '{name}' names {' and '.join(sorted(roles))}; rename "
                "it"
            )
        if roles:
            return roles.pop()
    return "train"
