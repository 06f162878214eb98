"""What a task asks of a caption: a question, a statement with a label, an expression with a box.

A split of such a task is an ordinary `Split`. Its captions are the questions, hypotheses,
statements or expressions of each picture, and ``Split.items`` holds one item per caption.
"""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]  # x, y, width, height in pixels, from the upper left corner


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture (VQA)."""

    id: int | str
    votes: tuple[str, ...] = ()  # the annotators' answers as they stand; empty: not published
    source: str = "vqa"  # vqa | vg: Visual Genome's questions have one answer, of weight 0.5
    answer_type: str | None = None  # "yes/no", "number", "other"
    question_type: str | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement about one picture (visual entailment) or two (NLVR2).

    Labels: contradiction 0, neutral 1, entailment 2; NLVR2: false 0, true 1. None: not published.
    """

    id: int | str
    label: int | None = None
    second: int | None = None  # index in the split of the second (right) picture; None: one picture
    group: str | None = None  # NLVR2: pairs with the same statement, for the consistency


@dataclass(frozen=True, slots=True)
class Expression:
    """A referring expression (grounding)."""

    id: int | str
    box: Box | None = None  # of the object that is meant; never used in training
    proposals: tuple[Box, ...] = ()  # boxes among which one is chosen
    size: tuple[int, int] | None = None  # width and height of the picture in pixels
    part: str | None = None  # part of the data set, such as testA, that is scored by itself


Item = Question | Statement | Expression
