"""Reads and validates the published numbers in ``published.yaml``."""

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
DIRECTIONS = ("i2t", "t2i", "i2i", "t2t")
NAMES = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10))


@dataclass(frozen=True)
class PublishedRow:
    """One published row of results; ``published.yaml`` documents the fields."""

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
    captions: int = 0  # number of captions ranked; 0: unknown
    pretrain: str = ""
    tower: tuple[str, ...] = ()  # names of a pre-trained tower, as ``model.tower`` has them
    stage: str = ""  # "first_stage": without re-ranking
    reference: bool = False
    note: str = ""
    more: Mapping[str, float] = field(default_factory=dict)  # other metrics

    @property
    def values(self) -> dict[str, float | None]:
        """R@K of both directions, rSum and other metrics, under the names that our results use."""
        named = dict(zip(NAMES, (*self.i2t, *self.t2i), strict=True))
        return {**named, "rsum": self.rsum, **self.more}


@dataclass(frozen=True)
class PublishedResults:
    """The contents of the file."""

    sources: dict[str, str]
    rows: tuple[PublishedRow, ...]
    misprints: tuple[dict[str, str], ...]
    authors: Mapping[str, Mapping[str, str]]

    def of(self, test: str, protocol: str, split: str = "test") -> list[PublishedRow]:
        """The rows of a dataset's split under a protocol, re-ranked or not.

        Papers rarely say whether they rank more than five captions per image, so their rows match
        both variants of our protocols.
        """
        key = (test, protocol.removesuffix("_first5"), split)
        return [row for row in self.rows if (row.test, row.protocol, row.split) == key]

    def selection(self, model: str, trained: str | None) -> str | None:
        """How the authors of ``model`` selected their checkpoint trained on ``trained``.

        None if this is unknown, or if it depends on the training data and ``trained`` is None.
        """
        rules = self.authors.get(model, {})
        if trained is not None and trained in rules:
            return rules[trained]
        return next(iter(rules.values())) if len(set(rules.values())) == 1 else None


@functools.cache
def load_published(path: Path = FILE) -> PublishedResults:
    """Load and validate ``path``. Raises DataError, naming the row, for an invalid field."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = [_row(path, number, row) for number, row in enumerate(content["rows"], start=1)]
        rows += [_cxc(row) for row in content["cxc"]]
        rows += [_accuracy(row) for row in content["accuracies"]]
        for row in content["classification"]:
            rows += _classification(row)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a valid file of published numbers ({error!r})") from error
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row.source not in content["sources"]:
            raise DataError(
                f"{path}: '{row.label}' has source: {row.source}, which is not in sources"
            )
        data = (row.train, row.test, row.split, row.protocol)
        key = (row.model, row.tower, *data, row.ensemble, row.stage)
        if row.reference and key in seen:
            raise DataError(
                f"{path}: '{seen[key]}' and '{row.label}' both have reference: true; keep one"
            )
        if row.reference:
            seen[key] = row.label
    return PublishedResults(
        content["sources"], tuple(rows), tuple(content["misprints"]), content["authors"]
    )


def _accuracy(row: dict[str, Any]) -> PublishedRow:
    """Accuracies of a task other than retrieval: ``accuracy``, and those of named subsets."""
    names = ("accuracy", "testA/accuracy", "testB/accuracy")
    facts = {key: value for key, value in row.items() if key not in names}
    more = {name: row[name] for name in names if name in row}
    return PublishedRow(backbone="ViT-B/16, BERT-base", ensemble=1, more=more, **facts)


def _cxc(row: dict[str, Any]) -> PublishedRow:
    """R@1 in four directions, of a model trained on COCO."""
    facts = {key: value for key, value in row.items() if key not in DIRECTIONS}
    more = {f"{direction}_r1": row[direction] for direction in DIRECTIONS}
    return PublishedRow(train="coco", test="coco", protocol="cxc", ensemble=1, more=more, **facts)


def _classification(row: dict[str, Any]) -> list[PublishedRow]:
    """One row per classification dataset."""
    facts = {key: row[key] for key in ("model", "label", "selection", "source", "evidence")}
    return [
        PublishedRow(
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


def _row(path: Path, number: int, row: dict[str, Any]) -> PublishedRow:
    known = [field.name for field in fields(PublishedRow)]
    unknown = [key for key in row if key not in known]
    if unknown:
        raise DataError(f"{path}: row {number} has '{unknown[0]}'; expected {', '.join(known)}")
    lists = {key: tuple(row.get(key, ())) for key in ("i2t", "t2i", "tower")}
    parsed = PublishedRow(**{**row, **lists})
    for key, value, allowed in (
        ("selection", parsed.selection, SELECTIONS),
        ("evidence", parsed.evidence, EVIDENCE),
    ):
        if value not in allowed:
            raise DataError(
                f"{path}: row {number} ('{parsed.label}') has {key}: {value}; expected one of "
                f"{', '.join(allowed)}"
            )
    if (len(parsed.i2t), len(parsed.t2i)) != (3, 3):
        raise DataError(
            f"{path}: row {number} ('{parsed.label}') needs three values in i2t and in t2i"
        )
    return parsed
