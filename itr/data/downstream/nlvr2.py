"""Reader of NLVR2: its JSON lines, and ALBEF's lists.

A statement is about two pictures: image 0 (left), whose record holds the statement, and image 1
(right). ``test_p`` is the public test set (``test1.json``), ``test_u`` the unreleased one
(``test2.json``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.downstream.rows import Row, Rows, find_file, load_entries, no_files, require_string
from itr.data.items import Statement
from itr.data.layout import data_root
from itr.data.layouts.json_annotations import describe_value
from itr.errors import DataError, first_of

FILES = {  # split -> ALBEF's list, official file
    "train": ("nlvr_train.json", "train.json"),
    "dev": ("nlvr_dev.json", "dev.json"),
    "test_p": ("nlvr_test.json", "test1.json"),
    "test_u": ("nlvr_test2.json", "test2.json"),
}
PEEK = 1 << 12  # bytes in which an entry names its fields
FOLDERS = ("", "data", "annotations", "albef", "nlvr2", "nlvr2/data", "nlvr")
ALIASES: dict[str, str] = {
    "val": "dev",
    "test": "test_p",
    "test1": "test_p",
    "test2": "test_u",
}  # other names of splits
SOURCES = {"nlvr2": ("nlvr2", "NLVR2", "nlvr", "images")}
LABELS = {"False": 0, "True": 1, False: 0, True: 1}
PICTURE = re.compile(r"(?P<set>[A-Za-z]+\d*-\d+)-\d+-img[01]\.\w+$")  # dev-850-0-img0.png
# Below the picture root, where ALBEF's lists and LAVIS expect the pictures of an official file.
TRAIN_FOLDER, OTHER_FOLDER = "images/train/{directory}", "{split}"


@dataclass(frozen=True)
class Nlvr2Files:
    """The files below one folder, by split."""

    files: dict[str, Path]
    sources: Mapping[str, Sequence[str]] = field(default_factory=lambda: SOURCES)
    aliases: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    name: str = "nlvr2"

    def splits(self) -> list[str]:
        """The splits on disk."""
        return list(self.files)

    def read(self, split: str) -> Rows:
        """The statements of ``split``."""
        path = self.files[split]
        rows = []
        for number, (where, entry) in enumerate(load_entries(path)):
            left, right = _pictures(where, entry)
            text = require_string(where, entry, "sentence")
            identifier = entry.get("identifier", number)
            item = Statement(
                identifier,
                parse_label(where, entry.get("label")),
                group=_group(identifier, left, text),
            )
            rows.append(Row(left, text, item, "nlvr2", right))
        return Rows(path, rows, _group_note(path, rows))


def find(data: DataConfig) -> Nlvr2Files:
    """The files below ``data.root``. Raises DataError if there are none."""
    root = data_root(data)
    files = {}
    for split, names in FILES.items():
        path = find_file(root, *names, folders=FOLDERS)
        if path is not None and _may_hold_pairs(path):
            files[split] = path
    if not files:
        raise no_files(data, "nlvr2", " or ".join(FILES["train"]))
    return Nlvr2Files(files)


def _may_hold_pairs(path: Path) -> bool:
    """Whether ``path`` is no list of image-caption pairs, which may have the same name."""
    try:
        with path.open("rb") as file:
            start = file.read(PEEK)
    except OSError:
        return True
    return not start.lstrip().startswith(b"[") or b'"identifier"' in start or b'"images"' in start


def parse_label(where: str, value: Any) -> int | None:
    """1 for "True" or a JSON true, 0 for "False" or false; None for no label.

    ALBEF's own code reads everything but the text "True" as false. Raises DataError for any other
    value.
    """
    if value is None:
        return None
    if not isinstance(value, bool | str) or value not in LABELS:
        raise DataError(f"{where}: 'label' is {describe_value(value)}; expected True or False")
    return LABELS[value]


def _pictures(where: str, entry: Mapping[str, Any]) -> tuple[str, str]:
    """The paths of the left and the right picture, relative to the picture root."""
    images = entry.get("images")
    if images is not None:
        is_pair = isinstance(images, list) and len(images) == 2
        if not is_pair or not all(isinstance(image, str) and image for image in images):
            raise DataError(
                f"{where}: 'images' is {describe_value(images)}; expected two paths, left and right"
            )
        return images[0], images[1]
    identifier = require_string(where, entry, "identifier")
    split, *rest = identifier.split("-")
    if len(rest) != 3:
        raise DataError(
            f"{where}: 'identifier' is '{identifier}'; expected SPLIT-SET-PAIR-SENTENCE, or a list "
            "'images' of two paths"
        )
    pattern = TRAIN_FOLDER if split == "train" and "directory" in entry else OTHER_FOLDER
    folder = pattern.format(split=split, directory=entry.get("directory"))
    stem = "-".join((split, *rest[:2]))
    return f"{folder}/{stem}-img0.png", f"{folder}/{stem}-img1.png"


def _group(identifier: int | str, left: str, text: str) -> str | None:
    """What the pairs with the same statement have in common.

    Official identifiers say it without their third field. ALBEF's lists have none: there it is the
    set in the pictures' names, and the statement itself.
    """
    fields = str(identifier).split("-")
    if len(fields) == 4:
        return "-".join((*fields[:2], fields[3]))
    match = PICTURE.search(left)
    return f"{match['set']}: {text}" if match else None


def _group_note(path: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    ungrouped = [str(row.item.id) for row in rows if getattr(row.item, "group", None) is None]
    if not ungrouped:
        return ()
    return (
        f"{path}: {len(ungrouped)} statements have neither an identifier nor pictures that name "
        f"their set: {first_of(ungrouped)}; the consistency is computed without them",
    )
