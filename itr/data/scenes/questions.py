"""Questions about scenes with exact answers, in the format of ALBEF's VQA lists.

Ten annotators answer: most of them with the plain word, some with a synonym.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from itr.data.scenes.balance import choose_balanced, new_cells
from itr.data.scenes.grammar import SYNONYMS
from itr.data.scenes.known_scenes import (
    RELATIONS,
    KnownScene,
    color,
    fill,
    place,
    relations,
    shape,
    size,
)
from itr.data.scenes.world import COLORS, FILLS, SHAPES, SIZES, Scene

PER_PICTURE = 6  # questions, on average
GENOME_PER_PICTURE = 1  # further training questions with one answer
COUNTED = ("0", "1", "2", "3")
COUNT_WORDS = {"0": "none", "1": "one", "2": "two", "3": "three"}
SYNONYM_VOTES = 3  # of ten, for an answer that has synonyms


class Kind(NamedTuple):
    """A kind of question."""

    name: str  # ``question_type`` in the lists
    answer_type: str
    answers: int  # possible ones


KINDS = (
    Kind("existence", "yes/no", 2),
    Kind("relation", "yes/no", 2),
    Kind("count", "number", 4),
    Kind("color", "other", 10),
    Kind("shape", "other", 6),
    Kind("fill", "other", 2),
    Kind("place", "other", 4),
    Kind("beside", "other", 6),
)


def write_questions(scenes: dict[str, list[KnownScene]], seed: Sequence[int]) -> dict[str, Any]:
    """File name -> content: the questions of each split, Visual Genome's, and the answer list."""
    files: dict[str, Any] = {}
    for stream, (split, known) in enumerate(scenes.items()):
        rng = np.random.default_rng([*seed, stream])
        files[f"vqa_{split}.json"] = _rows(known, PER_PICTURE, rng, stream)
    rng = np.random.default_rng([*seed, len(scenes)])
    rows = _rows(scenes["train"], GENOME_PER_PICTURE, rng, len(scenes))
    files["vg_qa.json"] = [
        {**row, "dataset": "vg", "answer": row["answer"][0]}  # one answer instead of ten
        for row in rows
    ]
    answers = {vote for row in files["vqa_train.json"] for vote in row["answer"]}
    files["answer_list.json"] = sorted(answers)
    return files


def _rows(
    known: Sequence[KnownScene], per_picture: int, rng: np.random.Generator, stream: int
) -> list[dict[str, Any]]:
    cells = {kind.name: new_cells() for kind in KINDS}
    for index, entry in enumerate(known):
        for name, text, answer in questions_of(entry.scene):
            cells[name][text][answer].append(index)
    rows = []
    for kind in KINDS:
        total = per_picture * len(known) // len(KINDS)
        for text, answer, index in choose_balanced(
            cells[kind.name], kind.answers, total, len(known), rng
        ):
            rows.append(
                {
                    "question": text,
                    "answer": votes_of(answer),
                    "image": known[index].file,
                    "dataset": "vqa",
                    "answer_type": kind.answer_type,
                    "question_type": kind.name,
                }
            )
    order = rng.permutation(len(rows))
    first = 1_000_000 * (stream + 1)
    return [{"question_id": first + n, **rows[row]} for n, row in enumerate(order)]


def votes_of(answer: str) -> list[str]:
    """The answers of ten annotators, the plain word first."""
    others = SYNONYMS.get(answer, (answer,))[1:]
    if answer in COUNT_WORDS:
        others = (COUNT_WORDS[answer],)
    elif " " in answer:  # a place
        others = (answer.replace("top", "upper").replace("bottom", "lower"),)
    votes = [others[n % len(others)] for n in range(SYNONYM_VOTES)] if others else []
    return [answer] * (10 - len(votes)) + votes


def questions_of(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """All questions about a scene that have one answer: kind, question, answer."""
    there = {(color(thing), shape(thing)) for thing in scene}
    for c in COLORS:
        for s in SHAPES:
            article = "an" if c[0] in "aeiou" else "a"
            yield "existence", f"is there {article} {c} {s}?", _yes((c, s) in there)
    for thing in scene:
        yield "color", f"what color is the {shape(thing)}?", color(thing)
        yield "shape", f"what shape is the {color(thing)} thing?", shape(thing)
        yield "fill", f"is the {shape(thing)} solid or hollow?", fill(thing)
        yield "fill", f"is the {color(thing)} thing solid or hollow?", fill(thing)
        yield "place", f"where is the {shape(thing)}?", place(thing)
        yield "place", f"where is the {color(thing)} thing?", place(thing)
        for other in scene:
            for relation, holds in relations(thing, other):
                text = f"is the {shape(thing)} {relation} the {shape(other)}?"
                yield "relation", text, _yes(holds)
    for name, value in ((n, v) for n, values in ((fill, FILLS), (size, SIZES)) for v in values):
        count = str(sum(name(thing) == value for thing in scene))
        if count in COUNTED:
            yield "count", f"how many {value} things are there?", count
    yield from _beside(scene)


def _beside(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Questions about the only thing that has a relation to another."""
    for thing in scene:
        for relation in RELATIONS:
            having = [t for t in scene if (relation, True) in relations(t, thing)]
            if len(having) == 1:
                text = f"what is {relation} the {color(thing)} thing?"
                yield "beside", text, shape(having[0])


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
