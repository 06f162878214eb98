"""Files that say what referring expressions mean: references, objects, detected boxes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from itr.data.ids import whole_number
from itr.data.items import Box
from itr.data.layouts.json_annotations import describe_value, load_json
from itr.errors import DataError, first_of


class Reference(NamedTuple):
    """A reference to an object: the expressions that people wrote for it."""

    annotation: int  # id of the object
    image: int  # COCO's id
    part: str  # train, val, testA or testB
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Boxes:
    """Boxes (x, y, width, height), by COCO's ids."""

    objects: dict[int, Box] = field(default_factory=dict)  # object -> its box
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # picture -> width and height
    files: dict[int, str] = field(default_factory=dict)  # picture -> file name
    proposals: dict[int, tuple[Box, ...]] = field(default_factory=dict)  # picture -> boxes
    notes: tuple[str, ...] = ()


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, text and numbers; refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse the class or function ``name``."""
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse a reference to something outside the file."""
        raise pickle.UnpicklingError("it refers to something outside the file")


def load_plain(path: Path) -> Any:
    """The content of a JSON file, or of a pickle of plain values.

    Raises DataError if the file is unreadable, or a pickle holds anything but lists, dictionaries,
    text and numbers.
    """
    if path.suffix == ".json":
        return load_json(path)
    try:
        with open(path, "rb") as file:
            return PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(
            f"{path}: cannot be read safely ({error}); expected a pickle of lists, dictionaries, "
            "text and numbers. Download it again, or save its content as "
            f"{path.with_suffix('.json').name}"
        ) from error


def read_references(path: Path) -> dict[int, Reference]:
    """Reference id -> reference. Raises DataError for unusable contents."""
    content = load_plain(path)
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: holds {describe_value(content)}; expected a list of references")
    references = {}
    for number, entry in enumerate(content):
        where = f"{path}: [{number}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: is {describe_value(entry)}; expected a reference")
        identifier, annotation, image = (
            _number(where, entry, key) for key in ("ref_id", "ann_id", "image_id")
        )
        texts = tuple(_sentence(where, sentence) for sentence in entry.get("sentences") or ())
        references[identifier] = Reference(annotation, image, str(entry.get("split")), texts)
    return references


def read_boxes(instances: Path | None, detections: Path | None) -> Boxes:
    """The boxes of two files, either of which may be missing.

    Raises DataError for unusable contents, or a box of an object that is outside its picture.
    Proposals outside their picture are left out and counted in a note.
    """
    objects, sizes, files = ({}, {}, {}) if instances is None else _read_instances(instances)
    proposals, outside = {}, []
    content = {} if detections is None else load_json(detections)
    if not isinstance(content, dict):
        raise DataError(
            f"{detections}: holds {describe_value(content)}; expected an object that maps a "
            "picture's id to a list of boxes"
        )
    for key, boxes in content.items():
        image = whole_number(key)
        if image is None or not isinstance(boxes, list):
            raise DataError(f"{detections}: '{key}': expected a picture's id and a list of boxes")
        read = [_box(f"{detections}: '{key}'", box) for box in boxes]
        kept = tuple(box for box in read if is_inside(box, sizes.get(image)))
        outside += [key] * (len(read) - len(kept))
        proposals[image] = kept
    notes: tuple[str, ...] = ()
    if outside:
        notes = (
            f"{detections}: {len(outside)} boxes outside their picture are left out, e.g. of "
            f"picture {first_of(outside, 1)}",
        )
    return Boxes(objects, sizes, files, proposals, notes)


def is_inside(box: Box, size: tuple[int, int] | None) -> bool:
    """Whether ``box`` has a common part with a picture of this width and height."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return False
    return size is None or (x < size[0] and y < size[1] and x + width > 0 and y + height > 0)


def _read_instances(
    path: Path,
) -> tuple[dict[int, Box], dict[int, tuple[int, int]], dict[int, str]]:
    """Boxes of objects, sizes and file names of pictures."""
    content = load_json(path)
    parts = [
        content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")
    ]
    if not all(isinstance(part, list) for part in parts):
        raise DataError(f"{path}: expected an object with the lists 'images' and 'annotations'")
    sizes, files, objects = {}, {}, {}
    for number, entry in enumerate(parts[0] or ()):
        where = f"{path}: images[{number}]"
        image = _number(where, entry, "id")
        sizes[image] = (_number(where, entry, "width"), _number(where, entry, "height"))
        if isinstance(entry.get("file_name"), str):
            files[image] = entry["file_name"]
    for number, entry in enumerate(parts[1] or ()):
        where = f"{path}: annotations[{number}]"
        identifier, image = _number(where, entry, "id"), _number(where, entry, "image_id")
        box = _box(where, entry.get("bbox"))
        if not is_inside(box, sizes.get(image)):
            raise DataError(
                f"{where}: the box {list(box)} of object {identifier} is outside its picture of "
                f"{sizes.get(image)} pixels; expected x, y, width, height. Correct the file"
            )
        objects[identifier] = box
    return objects, sizes, files


def _number(where: str, entry: Any, key: str) -> int:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    number = whole_number(value)
    if number is None:
        raise DataError(f"{where}: '{key}' is {describe_value(value)}; expected a number")
    return number


def _sentence(where: str, sentence: Any) -> str:
    text = sentence.get("sent", sentence.get("raw")) if isinstance(sentence, dict) else sentence
    if not isinstance(text, str):
        raise DataError(f"{where}: a sentence is {describe_value(sentence)}; expected text")
    return text


def _box(where: str, value: Any) -> Box:
    """A box; a fifth number, such as a score, is ignored."""
    numbers = value[:4] if isinstance(value, Sequence) else ()
    is_number = [isinstance(n, int | float) and not isinstance(n, bool) for n in numbers]
    if len(numbers) != 4 or not all(is_number) or not all(map(math.isfinite, numbers)):
        raise DataError(
            f"{where}: {describe_value(value)} is no box; expected [x, y, width, height]"
        )
    x, y, width, height = map(float, numbers)
    return x, y, width, height
