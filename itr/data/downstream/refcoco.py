"""Reader of referring expressions (RefCOCO+): ALBEF's lists and the files of the data set.

``<name>_{train,val,test}.json`` are ALBEF's lists of ``image``, ``text`` and ``ref_id``.
``refs(unc).p`` says to which object and which part (train, val, testA, testB) a reference belongs,
``instances.json`` where the objects are, ``dets.json`` which boxes a detector found. Without
ALBEF's lists, the expressions are those of the references.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from itr.data.config import DataConfig
from itr.data.downstream.ref_files import Boxes, Reference, read_boxes, read_references
from itr.data.downstream.rows import Row, Rows, find_file, load_entries, no_files, require_string
from itr.data.ids import whole_number
from itr.data.items import Expression
from itr.data.layout import data_root
from itr.data.layouts.json_annotations import describe_value, require_text
from itr.errors import DataError

LIST_ROLES = ("train", "val", "test")  # of ALBEF's lists; the test list holds val, testA and testB
PARTS = ("train", "val", "testA", "testB")  # of the references
REFS = ("refs(unc).p", "refs(unc).json", "refs.json", "refs(umd).p", "refs(google).p")
INSTANCES, DETECTIONS = "instances.json", "dets.json"
FOLDERS = ("", "data", "annotations", "albef", "grounding")
ALIASES: dict[str, str] = {"test": "testA+testB"}  # other names of splits
SOURCES = {"coco": ("coco", "mscoco", "COCO", "images/mscoco/images")}
IMAGE_FOLDER = "train2014"  # of COCO: all pictures of RefCOCO are from there


@dataclass(frozen=True)
class RefCocoFiles:
    """The files of one data set of referring expressions."""

    lists: dict[str, Path]
    refs: Path | None
    instances: Path | None
    detections: Path | None
    sources: Mapping[str, Sequence[str]] = field(default_factory=lambda: SOURCES)
    aliases: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    name: str = "refcoco"

    def splits(self) -> list[str]:
        """The parts of the references; without references, ALBEF's lists."""
        if self.refs is None:
            return list(self.lists)
        parts = {reference.part for reference in self.references.values()}
        return [part for part in PARTS if part in parts]

    @functools.cached_property
    def references(self) -> dict[int, Reference]:
        """Reference id -> reference."""
        return {} if self.refs is None else read_references(self.refs)

    @functools.cached_property
    def boxes(self) -> Boxes:
        """Where objects are, picture sizes and proposals, by COCO's ids."""
        return read_boxes(self.instances, self.detections)

    def read(self, split: str) -> Rows:
        """The expressions of ``split``."""
        listed = [*self._listed(split)]
        path = self.lists.get(split) or self.refs or next(iter(self.lists.values()))
        rows = listed or [*self._referenced(split)]
        if not rows:
            raise DataError(f"{path}: holds no expression of split '{split}'")
        return Rows(path, rows, self._notes(path, split, rows))

    def _listed(self, split: str) -> Iterator[Row]:
        """The expressions of ALBEF's lists; a pair of lists may hold the same ones."""
        roles = (split,) if self.refs is None or split == "train" else ("val", "test")
        earlier: set[tuple[int | str, str, str]] = set()  # in the lists before
        for role in roles:
            rows = [] if role not in self.lists else [*self._rows_of(role, split)]
            keys = [(row.item.id, row.image, row.text) for row in rows]
            yield from (row for row, key in zip(rows, keys, strict=True) if key not in earlier)
            earlier.update(keys)

    def _rows_of(self, role: str, split: str) -> Iterator[Row]:
        """The expressions of one of ALBEF's lists that belong to ``split``."""
        for where, entry in load_entries(self.lists[role]):
            image, text = require_text(where, entry, "image"), require_string(where, entry, "text")
            number = whole_number(entry.get("ref_id"))
            if number is None:
                value = describe_value(entry.get("ref_id"))
                raise DataError(f"{where}: 'ref_id' is {value}; expected a number")
            if self._part(where, number, role) == split:
                yield Row(image, text, self._item(number, split), "coco")

    def _part(self, where: str, reference: int, role: str) -> str:
        if self.refs is None:
            return role
        known = self.references.get(reference)
        if known is None:
            raise DataError(
                f"{where}: 'ref_id' {reference} is not in {self.refs}; the two files belong to "
                "different data sets. Put those of one data set there"
            )
        return known.part

    def _referenced(self, split: str) -> Iterator[Row]:
        """The expressions of the references."""
        for number, reference in self.references.items():
            if reference.part == split:
                file = self.boxes.files.get(reference.image) or (
                    f"COCO_{IMAGE_FOLDER}_{reference.image:012d}.jpg"
                )
                for text in reference.texts:
                    yield Row(f"{IMAGE_FOLDER}/{file}", text, self._item(number, split), "coco")

    def _item(self, number: int, split: str) -> Expression:
        """What is known of the object that reference ``number`` means."""
        reference = self.references.get(number)
        if reference is None:
            return Expression(number, part=split)
        boxes = self.boxes
        box = boxes.objects.get(reference.annotation)
        if box is None and self.instances is not None:
            raise DataError(
                f"{self.instances}: has no object {reference.annotation}, which reference {number} "
                f"in {self.refs} means; the two files belong to different data sets"
            )
        proposals = boxes.proposals.get(reference.image, ())
        return Expression(number, box, proposals, boxes.sizes.get(reference.image), split)

    def _notes(self, path: Path, split: str, rows: Sequence[Row]) -> tuple[str, ...]:
        if split == "train":
            return ()  # boxes are never used in training
        items = [row.item for row in rows]
        notes = list(self.boxes.notes)
        unknown = [item for item in items if isinstance(item, Expression) and item.box is None]
        if unknown:
            notes.append(
                f"{path}: the objects of {len(unknown)} expressions of {split} are not known; they "
                f"are predicted, but not scored. {REFS[0]} and {INSTANCES} tell them"
            )
        if self.detections is not None:
            bare = [i.id for i in items if isinstance(i, Expression) and not i.proposals]
            if bare:
                notes.append(
                    f"{self.detections}: has no proposal for {len(bare)} of {len(items)} "
                    f"expressions of {split}, e.g. reference {bare[0]}"
                )
        return tuple(notes)


def find(data: DataConfig) -> RefCocoFiles:
    """The files below ``data.root``. Raises DataError if there are none."""
    root = data_root(data)
    names = tuple(dict.fromkeys((data.name, "refcoco+", "grounding")))
    lists: dict[str, Path] = {}
    for name in names:
        for role in LIST_ROLES:
            if path := find_file(root, f"{name}_{role}.json", folders=_folders(name)):
                lists[role] = path
        if lists:
            break
    else:
        name = names[0]
    inside = _folders(name)
    refs = find_file(root, *REFS, folders=inside)
    if not lists and refs is None:
        raise no_files(data, "grounding", f"{names[0]}_train.json (ALBEF's lists) or {REFS[0]}")
    instances = find_file(root, INSTANCES, folders=inside)
    return RefCocoFiles(lists, refs, instances, find_file(root, DETECTIONS, folders=inside))


def _folders(name: str) -> tuple[str, ...]:
    """Where the files of data set ``name`` are looked for."""
    return (name, f"data/{name}", *FOLDERS)
