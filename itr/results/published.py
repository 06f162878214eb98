"""The numbers that others printed: ``published.yaml`` beside this file, read and checked."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from itr.errors import DataError

FILE = Path(__file__).with_name("published.yaml")
SELECTIONS = ("val", "test", "last", "zero-shot", "unknown")
EVIDENCE = ("source", "quoted", "users", "unverified")
NAMES = tuple(f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))


@dataclass(frozen=True)
class Published:
    """One printed row of retrieval results; ``published.yaml`` explains the fields."""

    model: str
    label: str
    train: str
    test: str
    protocol: str
    backbone: str
    ensemble: int
    selection: str
    i2t: tuple[float | None, ...]
    t2i: tuple[float | None, ...]
    rsum: float | None
    source: str
    evidence: str
    pretrain: str = ""
    stage: str = ""  # first_stage: without re-ranking
    reference: bool = False
    note: str = ""

    @property
    def values(self) -> dict[str, float | None]:
        """R@K both ways and rSum, under the names of our own results."""
        return {**dict(zip(NAMES, (*self.i2t, *self.t2i), strict=True)), "rsum": self.rsum}


@dataclass(frozen=True)
class Publications:
    """Everything in the file."""

    sources: dict[str, str]
    rows: tuple[Published, ...]
    misprints: tuple[dict[str, str], ...]
    cxc: tuple[dict[str, Any], ...] = field(default_factory=tuple)
    classification: tuple[dict[str, Any], ...] = field(default_factory=tuple)

    def of(self, test: str, protocol: str, stage: str = "") -> list[Published]:
        """The rows of a data set under a protocol; ``stage`` as in the file."""
        here = (test, protocol, stage)
        return [row for row in self.rows if (row.test, row.protocol, row.stage) == here]


@functools.cache
def publications(path: Path = FILE) -> Publications:
    """The file at ``path``. Raises DataError, naming the row, for a field that cannot stand."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = [_row(path, number, row) for number, row in enumerate(content["rows"], start=1)]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as published numbers ({error!r})") from error
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row.source not in content["sources"]:
            raise DataError(f"{path}: '{row.label}' names source '{row.source}', not in sources")
        place = (row.model, row.train, row.test, row.protocol, row.ensemble, row.stage)
        if row.reference and place in seen:
            raise DataError(f"{path}: '{seen[place]}' and '{row.label}' are both the reference")
        if row.reference:
            seen[place] = row.label
    return Publications(
        content["sources"],
        tuple(rows),
        tuple(content["misprints"]),
        tuple(content["cxc"]),
        tuple(content["classification"]),
    )


def _row(path: Path, number: int, row: dict[str, Any]) -> Published:
    known = [field.name for field in fields(Published)]
    strange = [key for key in row if key not in known]
    if strange:
        raise DataError(f"{path}: row {number} has '{strange[0]}'; expected {', '.join(known)}")
    made = Published(**{**row, "i2t": tuple(row["i2t"]), "t2i": tuple(row["t2i"])})
    for key, value, allowed in (
        ("selection", made.selection, SELECTIONS),
        ("evidence", made.evidence, EVIDENCE),
    ):
        if value not in allowed:
            raise DataError(
                f"{path}: row {number} ('{made.label}') has {key}: {value}; expected one of "
                f"{', '.join(allowed)}"
            )
    if (len(made.i2t), len(made.t2i)) != (3, 3):
        raise DataError(f"{path}: row {number} ('{made.label}') needs three values each way")
    return made
