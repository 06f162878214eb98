"""Examines questions, hypotheses, statements and expressions: counts, labels, answers, leaks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from itr.data.checks.leaks import check_leaks
from itr.data.config import DataConfig
from itr.data.doctor.inspect import caption_statistics, check_duplicates
from itr.data.doctor.report import NOTE, REFUSED, WARNING, DatasetReport, SplitReport
from itr.data.downstream.open import FINDERS, find_answer_list, find_items, open_items
from itr.data.downstream.rows import NoItemsError
from itr.data.downstream.vqa import read_answer_list
from itr.data.items import Expression, Question, Statement
from itr.data.layouts.registry import open_split
from itr.data.records import Split
from itr.data.splits import role_of
from itr.errors import ConfigError, DataError, first_of

# Items and pictures (None: unknown) of the published splits.
KNOWN_SIZES: dict[tuple[str, str], tuple[int, int | None]] = {
    ("vqa2", "train"): (443_757, 82_783),
    ("vqa2", "val"): (214_354, 40_504),
    ("vqa2", "test"): (447_793, 81_434),
    ("vqa2", "test-dev"): (107_394, None),
    ("snli_ve", "train"): (529_527, 29_783),
    ("snli_ve", "dev"): (17_858, 1_000),
    ("snli_ve", "test"): (17_901, 1_000),
    ("nlvr2", "train"): (86_373, None),
    ("nlvr2", "dev"): (6_982, None),
    ("nlvr2", "test_p"): (6_967, None),
    ("nlvr2", "test_u"): (6_970, None),
    ("refcoco+", "train"): (120_191, None),
    ("refcoco+", "val"): (10_758, None),
    ("refcoco+", "testA"): (5_726, None),
    ("refcoco+", "testB"): (4_889, None),
}
# Notes with these phrases say that training skips something.
SKIPPED = ("left out", "not read", "has no proposal")
TRAINING = ("train", "vg")
ExamineImages = Callable[[Split], np.ndarray]  # decodes all images and returns their digests


def find_tasks(data: DataConfig, task: str | None) -> list[str]:
    """The tasks that ``data.root`` has files of; only ``task`` if it is given."""
    if task is not None:
        return [task] if task in FINDERS else []
    found = []
    for name, find in FINDERS.items():
        try:
            find(data)
        except NoItemsError:
            continue
        except DataError:
            pass  # there are files; `examine_items` reports what is wrong with them
        found.append(name)
    return found


def examine_items(
    data: DataConfig,
    name: str | None,
    task: str,
    report: DatasetReport,
    examine_images: ExamineImages,
) -> None:
    """Open every split of ``task`` as training does, and examine it in full.

    ``name`` is that of a published dataset, whose sizes are known; None: unknown.
    """
    try:
        names = find_items(data, task).splits()
    except DataError as error:
        report.add(REFUSED, task, "", str(error))
        return
    splits: dict[str, Split] = {}
    digests: dict[str, np.ndarray] = {}
    for split_name in names:
        split = _open(data, task, split_name, report)
        if split is not None:
            splits[split_name] = split
            _examine_split(split, name, report)
            digests[split_name] = examine_images(split)
    for other in splits:  # two evaluated splits, such as testA and testB, may share pictures
        pair = ["train", other] if "train" in splits and other not in TRAINING else [other]
        members = {key: splits[key] for key in pair}
        check_duplicates(task, members, {key: digests[key] for key in pair}, report)
    _check_split_leaks(task, splits, report)
    if task == "vqa":
        _check_answers(data, splits, report)
    if task == "entailment":
        _check_retrieval_training(data, splits, report)


def _open(data: DataConfig, task: str, name: str, report: DatasetReport) -> Split | None:
    """The split as training opens it; None, and a finding, if training would refuse it."""
    role = "train" if name in TRAINING else name
    try:
        split = open_items(dataclasses.replace(data, splits={role: name}), task, role)
    except (DataError, ConfigError) as error:
        report.add(REFUSED, task, name, str(error))
        return None
    for note in split.notes:
        skipped = any(phrase in note for phrase in SKIPPED)
        report.add(WARNING if skipped else NOTE, task, name, note)
    return dataclasses.replace(split, layout=task, name=name)


def _examine_split(split: Split, name: str | None, report: DatasetReport) -> None:
    statistics = {**caption_statistics(split), **item_statistics(split)}
    report.splits.append(SplitReport.of(split, statistics))
    counts = ", ".join(f"{key} {count:,}" for key, count in statistics["items"].items())
    report.add(NOTE, split.layout, split.name, f"{split.name}: {counts}")
    items, images = KNOWN_SIZES.get((name or "", split.name), (None, None))
    for what, known, found in (
        ("items", items, split.n_captions),
        ("pictures", images, split.n_images),
    ):
        if known is not None and known != found:
            message = f"{found:,} {what}; this split of {name} has {known:,}"
            report.add(NOTE, split.layout, split.name, message)


def item_statistics(split: Split) -> dict[str, Any]:
    """``items``: how many items there are of each kind."""
    counts: Counter[str] = Counter()
    for item in split.items or ():
        if isinstance(item, Question):
            kind = item.answer_type or item.source
            counts[kind if item.votes else "without answers"] += 1
        elif isinstance(item, Statement):
            counts["without a label" if item.label is None else f"label {item.label}"] += 1
        elif isinstance(item, Expression):
            counts["with a box" if item.box else "without a box"] += 1
    return {"items": dict(sorted(counts.items()))}


def _check_split_leaks(task: str, splits: Mapping[str, Split], report: DatasetReport) -> None:
    if "train" not in splits:
        return
    others = {name: split for name, split in splits.items() if name not in TRAINING}
    for name, split in others.items():
        try:
            check_leaks({"train": splits["train"], name: split})
        except DataError as error:
            report.add(REFUSED, task, name, str(error))


def _check_answers(data: DataConfig, splits: Mapping[str, Split], report: DatasetReport) -> None:
    """Whether the answers to the questions are in the answer list."""
    path = find_answer_list(data)
    if path is None:
        message = "there is no answer_list.json; it is made of the answers of the training split"
        report.add(NOTE, "vqa", "", message)
        return
    try:
        listed = set(read_answer_list(path))
    except DataError as error:
        report.add(REFUSED, "vqa", "", str(error))
        return
    for name, split in splits.items():
        given = [i.votes for i in split.items or () if isinstance(i, Question) and i.votes]
        if given:
            covered = sum(not listed.isdisjoint(votes) for votes in given)
            message = (
                f"{100 * covered / len(given):.2f} % of the questions of {name} have an answer "
                f"among the {len(listed):,} of {path.name}"
            )
            report.add(NOTE, "vqa", name, message)


def _check_retrieval_training(
    data: DataConfig, splits: Mapping[str, Split], report: DatasetReport
) -> None:
    """Whether evaluated pictures are in the training split of Flickr30K's annotations.

    A model that was trained for retrieval has seen those pictures with their captions.
    """
    train = _retrieval_training(data, splits)
    if train is None:
        return
    known = {PurePath(str(record.image)).name for record in train.records}
    for name, split in splits.items():
        files = [PurePath(str(record.image)).name for record in split.records]
        seen = [file for file in files if file in known]
        if role_of(name) != "train" and seen:
            message = (
                f"{len(seen)} of {len(files)} pictures are in the training split of {train.source} "
                f"({first_of(seen)}): do not start from a retrieval model that was trained on it"
            )
            report.add(WARNING, split.layout, name, message)


def _retrieval_training(data: DataConfig, splits: Mapping[str, Split]) -> Split | None:
    """The training split of Flickr30K's annotations near the pictures; None: there are none."""
    folders = [Path(data.root).expanduser()]
    for split in splits.values():
        pictures = Path(str(split.records[0].image)).parent
        folders += [pictures, pictures.parent]
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob("dataset_flickr30k*.json")):
            plain = DataConfig("f30k", str(path.parent), layout="karpathy", images=data.images)
            try:
                return open_split(plain, "train", "pixels")
            except DataError:
                continue  # it is checked as a dataset for retrieval, with data=f30k
    return None


def item_layouts(layouts: Sequence[str]) -> list[str]:
    """The layouts of pairs that may be beside items: those whose readers take no files of items."""
    return [layout for layout in layouts if layout not in ("lists", "table")]
