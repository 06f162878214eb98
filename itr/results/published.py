"""The numbers that others printed: ``published.yaml`` beside this file, read and checked."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from itr.errors import DataError

FILE = Path(__file__).with_name("published.yaml")
SELECTIONS = ("val", "test", "last", "zero-shot", "unknown")
EVIDENCE = ("source", "quoted", "users", "unverified")
WAYS = ("i2t", "t2i", "i2i", "t2t")
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
    source: str
    evidence: str
    i2t: tuple[float | None, ...] = (None, None, None)
    t2i: tuple[float | None, ...] = (None, None, None)
    rsum: float | None = None
    split: str = "test"
    captions: int = 0  # how many are ranked; 0: not known
    pretrain: str = ""
    stage: str = ""  # first_stage: without re-ranking
    reference: bool = False
    note: str = ""
    more: Mapping[str, float] = field(default_factory=dict)  # other metrics

    @property
    def values(self) -> dict[str, float | None]:
        """R@K both ways, rSum and any other metrics, under the names of our own results."""
        named = dict(zip(NAMES, (*self.i2t, *self.t2i), strict=True))
        return {**named, "rsum": self.rsum, **self.more}


@dataclass(frozen=True)
class PublishedResults:
    """Everything in the file."""

    sources: dict[str, str]
    rows: tuple[Published, ...]
    misprints: tuple[dict[str, str], ...]
    authors: Mapping[str, Mapping[str, str]]

    def of(self, test: str, protocol: str, split: str = "test") -> list[Published]:
        """The rows of a data set's split under a protocol, re-ranked or not. Papers seldom say
        whether a split's captions beyond five an image are ranked: theirs stand beside either of
        our protocols."""
        here = (test, protocol.removesuffix("_first5"), split)
        return [row for row in self.rows if (row.test, row.protocol, row.split) == here]

    def chosen(self, model: str, trained: str | None) -> str | None:
        """How the authors of ``model`` chose their checkpoint trained on ``trained``; None: not
        known, or it differs by what it was trained on."""
        rules = self.authors.get(model, {})
        if trained is not None and trained in rules:
            return rules[trained]
        return next(iter(rules.values())) if len(set(rules.values())) == 1 else None


@functools.cache
def load_published(path: Path = FILE) -> PublishedResults:
    """The file at ``path``. Raises DataError, naming the row, for a field that cannot stand."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = [_row(path, number, row) for number, row in enumerate(content["rows"], start=1)]
        rows += [made for row in content["cxc"] for made in _cxc(row)]
        rows += [made for row in content["classification"] for made in _classification(row)]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as published numbers ({error!r})") from error
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row.source not in content["sources"]:
            raise DataError(f"{path}: '{row.label}' names source '{row.source}', not in sources")
        place = (row.model, row.train, row.test, row.split, row.protocol, row.ensemble, row.stage)
        if row.reference and place in seen:
            raise DataError(f"{path}: '{seen[place]}' and '{row.label}' are both the reference")
        if row.reference:
            seen[place] = row.label
    return PublishedResults(
        content["sources"], tuple(rows), tuple(content["misprints"]), content["authors"]
    )


def _cxc(row: dict[str, Any]) -> list[Published]:
    """R@1 in four directions, of a model trained on COCO."""
    facts = {key: value for key, value in row.items() if key not in WAYS}
    more = {f"{way}_r1": row[way] for way in WAYS}
    return [Published(train="coco", test="coco", protocol="cxc", ensemble=1, more=more, **facts)]


def _classification(row: dict[str, Any]) -> list[Published]:
    """A row for each set that is classified."""
    facts = {key: row[key] for key in ("model", "label", "selection", "source", "evidence")}
    return [
        Published(
            **facts,
            train="yfcc",
            protocol="zeroshot",
            backbone="ViT-B/32",
            ensemble=1,
            test=name,
            more={"reported": value},
            reference=row.get("reference", False),
            note=row.get("note", ""),
        )
        for name, value in row.items()
        if isinstance(value, float) and name != "mean"
    ]


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
