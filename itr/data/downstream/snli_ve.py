"""Reader of SNLI-VE (visual entailment): its JSON lines, and ALBEF's lists.

The premise is the picture. ``sentence1``, the caption that the hypothesis was written for, is never
read: it gives the label away.
"""

from __future__ import annotations

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

LABELS = {"contradiction": 0, "neutral": 1, "entailment": 2}
NO_GOLD_LABEL = "-"  # of SNLI: the annotators did not agree
FILES = ("snli_ve_{}.jsonl", "ve_{}.json")  # official first: it names the pairs
SPLITS = ("train", "dev", "test")
FOLDERS = ("", "data", "annotations", "albef", "entailment")
ALIASES: dict[str, str] = {"val": "dev"}  # other names of splits
SOURCES = {"flickr30k": ("flickr30k", "Flickr30k", "flickr30k/flickr30k-images")}
IMAGE_KEYS = ("Flickr30K_ID", "Flikr30kID", "Flickr30k_ID", "image")
TEXT_KEYS = ("sentence2", "sentence")
LABEL_KEYS = ("gold_label", "label")


@dataclass(frozen=True)
class SnliVeFiles:
    """The files below one folder, by split."""

    files: dict[str, Path]
    sources: Mapping[str, Sequence[str]] = field(default_factory=lambda: SOURCES)
    aliases: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    name: str = "snli_ve"

    def splits(self) -> list[str]:
        """The splits on disk."""
        return list(self.files)

    def read(self, split: str) -> Rows:
        """The hypotheses of ``split``."""
        path = self.files[split]
        rows: list[Row] = []
        undecided: list[str] = []
        for number, (where, entry) in enumerate(load_entries(path)):
            image = require_string(where, entry, *IMAGE_KEYS).removesuffix(".jpg")
            if not image:
                raise DataError(f"{where}: names no picture; expected one of {IMAGE_KEYS}")
            given = next((entry[key] for key in LABEL_KEYS if key in entry), None)
            identifier = entry.get("pairID", number)
            if given == NO_GOLD_LABEL:
                undecided.append(str(identifier))
                continue
            item = Statement(identifier, parse_label(where, given))
            text = require_string(where, entry, *TEXT_KEYS)
            rows.append(Row(f"{image}.jpg", text, item, "flickr30k"))
        return Rows(path, rows, _undecided_note(path, undecided))


def find(data: DataConfig) -> SnliVeFiles:
    """The files below ``data.root``. Raises DataError if there are none."""
    root = data_root(data)
    files = {}
    for split in SPLITS:
        names = (pattern.format(split) for pattern in FILES)
        if path := find_file(root, *names, folders=FOLDERS):
            files[split] = path
    if not files:
        expected = " or ".join(pattern.format("train") for pattern in FILES)
        raise no_files(data, "entailment", expected)
    return SnliVeFiles(files)


def parse_label(where: str, value: Any) -> int | None:
    """The class of a label; None for no label. Raises DataError for any other value."""
    if value is None:
        return None
    if not isinstance(value, str) or value not in LABELS:
        raise DataError(
            f"{where}: the label is {describe_value(value)}; expected one of {', '.join(LABELS)}"
        )
    return LABELS[value]


def _undecided_note(path: Path, undecided: Sequence[str]) -> tuple[str, ...]:
    if not undecided:
        return ()
    return (
        f"{path}: {len(undecided)} pairs without a gold label ('{NO_GOLD_LABEL}') are left out: "
        f"{first_of(undecided)}",
    )
