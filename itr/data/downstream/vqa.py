"""Reader of VQA: the data set's official files, ALBEF's lists, and Visual Genome's questions.

ALBEF's lists hold one object per question: ``question_id``, ``question``, ``answer`` (a list of the
annotators' answers, one text, or nothing in a test list), ``image`` and ``dataset`` (``vqa`` or
``vg``, which decides on the picture root).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.data.config import DataConfig
from itr.data.downstream.rows import (
    Row,
    Rows,
    find_file,
    load_entries,
    no_files,
    require_string,
)
from itr.data.ids import whole_number
from itr.data.items import Question
from itr.data.layout import data_root
from itr.data.layouts.json_annotations import describe_value, load_json, require_text
from itr.errors import DataError, first_of

LISTS = {  # split -> ALBEF's list
    "train": "vqa_train.json",
    "val": "vqa_val.json",
    "test": "vqa_test.json",
    "test-dev": "vqa_test-dev.json",
    "vg": "vg_qa.json",
}
OFFICIAL = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"
ANSWER_LIST = "answer_list.json"
FOLDERS = ("", "data", "annotations", "albef", "vqa")
ALIASES: dict[str, str] = {}  # other names of splits
SOURCES: dict[str, Sequence[str]] = {
    "vqa": ("coco", "mscoco", "COCO", "vqa"),
    "vg": ("vg", "VG", "visual_genome", "visualgenome"),
}
EXPECTED = f"{LISTS['train']} (ALBEF's lists) or {QUESTIONS.format('train2014')} (official)"


@dataclass(frozen=True)
class VqaFiles:
    """The files of VQA below one folder: split -> its list, or questions and annotations."""

    lists: dict[str, Path]
    official: dict[str, tuple[Path, Path | None]]
    sources: Mapping[str, Sequence[str]]
    aliases: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    name: str = "vqa"

    def splits(self) -> list[str]:
        """The splits on disk."""
        return [name for name in LISTS if name in self.lists or name in self.official]

    def read(self, split: str) -> Rows:
        """The questions of ``split``; the official files are preferred, since they tell types."""
        if split in self.official:
            return _read_official(*self.official[split])
        return _read_list(self.lists[split], self.sources)


def find(data: DataConfig) -> VqaFiles:
    """The files below ``data.root``. Raises DataError if there are none."""
    root = data_root(data)
    lists, official = {}, {}
    for split, file in LISTS.items():
        if path := find_file(root, file, folders=FOLDERS):
            lists[split] = path
    for split, subset in OFFICIAL.items():
        questions = find_file(root, QUESTIONS.format(subset), folders=FOLDERS)
        annotations = find_file(root, ANNOTATIONS.format(subset), folders=FOLDERS)
        has_list_instead = split in lists and annotations is None
        if questions is not None and not has_list_instead:
            official[split] = (questions, annotations)
    if not lists and not official:
        raise no_files(data, "vqa", EXPECTED)
    own = {source: () for source in data.roots or {} if source not in SOURCES}
    return VqaFiles(lists, official, {**SOURCES, **own})


def _read_list(path: Path, sources: Mapping[str, Sequence[str]]) -> Rows:
    rows: list[Row] = []
    for where, entry in load_entries(path):
        source = entry.get("dataset", "vqa")
        if source not in sources:
            raise DataError(
                f"{where}: 'dataset' is {describe_value(source)}; expected one of "
                f"{', '.join(sources)}. Pass data.roots.{source}=DIR for a source of your own"
            )
        question = Question(
            _question_id(where, entry, len(rows)),
            _votes(where, entry.get("answer")),
            source,
            _optional(entry.get("answer_type")),
            _optional(entry.get("question_type")),
        )
        text = require_string(where, entry, "question")
        rows.append(Row(require_text(where, entry, "image"), text, question, source))
    return Rows(path, rows)


def _read_official(questions: Path, annotations: Path | None) -> Rows:
    answers = {} if annotations is None else _read_annotations(annotations)
    content = load_json(questions)
    entries = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{questions}: expected an object with a non-empty list 'questions'; copy or download "
            "it again"
        )
    subset = str(content.get("data_subtype", "")).replace("test-dev", "test")
    rows = []
    for number, entry in enumerate(entries):
        where = f"{questions}: questions[{number}]"
        image = whole_number(entry.get("image_id")) if isinstance(entry, dict) else None
        if image is None or not subset:
            raise DataError(
                f"{where}: expected an object with 'question', 'question_id' and 'image_id', in a "
                "file with 'data_subtype'; copy or download it again"
            )
        identifier = _question_id(where, entry, number)
        votes, answer_type, question_type = answers.pop(identifier, ((), None, None))
        file = f"{subset}/COCO_{subset}_{image:012d}.jpg"
        item = Question(identifier, votes, "vqa", answer_type, question_type)
        rows.append(Row(file, require_string(where, entry, "question"), item, "vqa"))
    notes: tuple[str, ...] = ()
    if answers:
        notes = (
            f"{annotations}: {len(answers)} annotations are not read, because {questions.name} has "
            f"no such question: {first_of(list(answers))}",
        )
    return Rows(questions, rows, notes)


def _read_annotations(path: Path) -> dict[int | str, tuple[tuple[str, ...], Any, Any]]:
    """Question id -> votes, answer type and question type."""
    content = load_json(path)
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: has no list 'annotations'; copy or download it again")
    answers: dict[int | str, tuple[tuple[str, ...], Any, Any]] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: annotations[{number}]"
        given = entry.get("answers") if isinstance(entry, dict) else None
        if not isinstance(given, list):
            raise DataError(f"{where}: 'answers' is {describe_value(given)}; expected a list")
        votes = [vote.get("answer") if isinstance(vote, dict) else vote for vote in given]
        answers[_question_id(where, entry, number)] = (
            _votes(where, votes),
            _optional(entry.get("answer_type")),
            _optional(entry.get("question_type")),
        )
    return answers


def _question_id(where: str, entry: Mapping[str, Any], position: int) -> int | str:
    """The id of a question; its position in the file if it has none."""
    value = entry.get("question_id", position)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: 'question_id' is {describe_value(value)}; expected a number")
    return value


def _votes(where: str, value: Any) -> tuple[str, ...]:
    """The annotators' answers as they stand; one text is the answer of one. Empty: none."""
    votes = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(votes, list) or not all(isinstance(vote, str) for vote in votes):
        raise DataError(
            f"{where}: 'answer' is {describe_value(value)}; expected text or a list of texts"
        )
    return tuple(map(sys.intern, votes))


def _optional(value: Any) -> str | None:
    return sys.intern(value) if isinstance(value, str) else None


# The answers that a model chooses from


def answer_list_below(root: Path) -> Path | None:
    """``answer_list.json`` below ``root``; None if it is not there."""
    return find_file(root, ANSWER_LIST, folders=FOLDERS)


def read_answer_list(path: Path) -> list[str]:
    """The answers of a JSON list of texts.

    Raises DataError if the list is empty, an entry is no text or empty, or entries repeat.
    """
    content = load_json(path)
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: holds {describe_value(content)}; expected a JSON list of answers")
    for number, answer in enumerate(content):
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"{path}: [{number}] is {describe_value(answer)}; expected an answer")
    repeated = [answer for answer, count in Counter(content).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: {len(repeated)} answers occur more than once: {first_of(repeated)}; expected "
            "each answer once. Remove the repetitions"
        )
    return content
