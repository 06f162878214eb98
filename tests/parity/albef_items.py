"""Golden cases of ALBEF's other tasks: items of the data sets, measures, boxes from maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from itr.evaluation.grounding_boxes import Box, ChosenBox, box_iou, box_scores, choose_box, upsample
from itr.evaluation.vqa_accuracy import (
    EVALUATORS,
    mean_by_group,
    normalize_answer,
    normalize_punctuation,
    strip_answer,
    vqa_scores,
)
from tests.parity.harness import Case, Runner

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
}
