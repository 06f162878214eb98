"""Builds the gallery page of a task with items: questions, statements, boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.config import DataConfig
from itr.data.downstream.open import open_items
from itr.data.items import Expression, Statement
from itr.data.records import Split
from itr.errors import DataError
from itr.evaluation.predictions import Predictions, predictions_path, read_predictions
from itr.evaluation.statistics import require_same_items
from itr.files import parse_json
from itr.instantiate import check
from itr.results.gallery.page import templates
from itr.results.gallery.thumbnails import Thumbnails, data_uri, image_label

TEMPLATE = "items.html.j2"
SOURCE = "predictions-{split}.source.json"  # where the pictures of the predictions are
SECTIONS = (
    ("wrong", "Wrong", "Items with the lowest scores, drawn at random among equals."),
    ("right", "Right", "Items with the highest scores, drawn at random among equals."),
    ("sample", "Random sample", "Items drawn at random from the whole split."),
)


@dataclass
class PredictedRun:
    """The predictions of an evaluated run with its pictures."""

    folder: Path
    split_name: str
    predictions: Predictions
    split: Split
    thumbnails: Thumbnails


def has_predictions(folder: Path, split: str) -> bool:
    """Whether ``folder`` holds predictions of ``split``."""
    return predictions_path(folder, split).is_file()


def open_predicted_run(folder: Path, split: str) -> PredictedRun:
    """The predictions in ``folder`` and the pictures that they are about.

    Raises DataError if a file is missing or malformed, or the data has changed since.
    """
    predictions, path = read_predictions(folder, split), folder / SOURCE.format(split=split)
    try:
        node = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); evaluate again with out={folder}"
        ) from error
    data: DataConfig = check(node, DataConfig, "data")
    opened = open_items(data, predictions.task, split)
    if opened.captions() != predictions.texts:
        raise DataError(
            f"{opened.source}: holds other items than those predicted in {folder}; the data has "
            f"changed: evaluate again with out={folder}"
        )
    return PredictedRun(folder, split, predictions, opened, Thumbnails(opened, data, split))


def build_item_page(run: PredictedRun, count: int = 8, seed: int = 0) -> str:
    """The page as an HTML string, with ``count`` items a section."""
    known = np.isfinite(run.predictions.scores)
    facts = [
        ("task", run.predictions.task),
        ("split", run.split_name),
        ("items", len(known)),
        ("data", run.split.source),
    ]
    if known.any():
        facts.insert(2, ("accuracy", f"{100 * run.predictions.scores[known].mean():.2f} %"))
    return (
        templates()
        .get_template(TEMPLATE)
        .render(
            name=run.folder.resolve().name,
            facts=facts,
            sections=[
                {
                    "id": name,
                    "title": title,
                    "text": text,
                    "cases": [_case(run, n) for n in _chosen(run.predictions, name, count, seed)],
                }
                for name, title, text in SECTIONS
            ],
            nothing="No item.",
        )
    )


def build_item_comparison(run: PredictedRun, other: Path, count: int = 8, seed: int = 0) -> str:
    """The page of the items that ``run`` (A) gets right and the run in ``other`` (B) does not, and
    the other way round, as an HTML string, with ``count`` items a section.

    Raises DataError if B's predictions are about other items.
    """
    second = read_predictions(other, run.split_name)
    require_same_items(run.predictions, second)
    both = (run.predictions, second)
    names = run.folder.resolve().name, other.resolve().name
    if names[0] == names[1]:
        names = str(run.folder), str(other)
    known = np.isfinite(both[0].scores) & np.isfinite(both[1].scores)
    right = [known & (found.scores >= 0.5) for found in both]
    facts = [
        ("task", run.predictions.task),
        ("split", run.split_name),
        ("A right", f"{int(right[0].sum()):,}"),
        ("B right", f"{int(right[1].sum()):,}"),
        ("both right", f"{int((right[0] & right[1]).sum()):,}"),
        ("items", f"{int(known.sum()):,}"),
        ("data", run.split.source),
    ]
    shuffled = np.random.default_rng(seed).permutation(len(known))
    sections = []
    for letter, only in (("A", right[0] & ~right[1]), ("B", right[1] & ~right[0])):
        chosen = shuffled[only[shuffled]][:count]
        sections.append(
            {
                "id": f"only-{letter}",
                "title": f"Only {letter} is right",
                "text": f"{len(chosen)} of {int(only.sum()):,}, drawn at random.",
                "cases": [_case(run, int(number), both) for number in chosen],
            }
        )
    return (
        templates()
        .get_template(TEMPLATE)
        .render(
            name=f"A: {names[0]} against B: {names[1]}",
            facts=facts,
            sections=sections,
            nothing="No item is answered right by one run alone.",
        )
    )


def _chosen(predictions: Predictions, section: str, count: int, seed: int) -> list[int]:
    scores = predictions.scores
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    if section == "sample":
        return shuffled[:count].tolist()
    known = shuffled[np.isfinite(scores[shuffled])]
    sign = 1 if section == "wrong" else -1
    order = known[np.argsort(sign * scores[known], kind="stable")]
    wanted = scores[order] < 0.5 if section == "wrong" else scores[order] >= 0.5
    return order[wanted][:count].tolist()


def _case(run: PredictedRun, number: int, several: tuple[Predictions, ...] = ()) -> dict[str, Any]:
    """What the page shows of one item: the answer of ``run``, or those of ``several`` runs."""
    item, shown = (run.split.items or ())[number], several or (run.predictions,)
    images = [int(run.split.text_to_image[number])]
    if isinstance(item, Statement) and item.second is not None:
        images.append(item.second)
    truth = run.predictions.truth[number]
    case: dict[str, Any] = {
        "pictures": [_picture(run, image) for image in images],
        "text": run.predictions.texts[number],
        "truth": truth,
        "votes": _votes(run.predictions, number),
        "answers": [
            _answer(found, number, f"{letter}: " if several else "")
            for letter, found in zip("AB", shown, strict=False)
        ],
    }
    if isinstance(item, Expression):
        names = ("A", "B") if several else ("predicted",)
        boxes = [
            ("truth", truth),
            *zip(names, (found.predicted[number] for found in shown), strict=True),
        ]
        case["boxes"] = [
            dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"kind": kind}
            for kind, box in boxes
            if box is not None
        ]
        case["size"], case["truth"] = item.size or (1, 1), "solid line"
        for answer, line in zip(case["answers"], ("dashed", "dotted"), strict=False):
            answer["predicted"] = f"{line} line" if several else f"{line}: predicted"
    return case


def _answer(found: Predictions, number: int, run: str) -> dict[str, Any]:
    score = float(found.scores[number])
    return {
        "run": run,
        "predicted": found.predicted[number],
        "score": None if np.isnan(score) else score,
        "verdict": "" if np.isnan(score) else "right" if score >= 0.5 else "wrong",
        "details": _details(found.details[number] if found.details else {}),
    }


def _picture(run: PredictedRun, image: int) -> dict[str, str]:
    thumbnail = run.thumbnails.get(image)
    return {
        "uri": "" if thumbnail is None else data_uri(thumbnail),
        "label": image_label(run.split.records[image]),
    }


def _details(detail: dict[str, Any]) -> list[str]:
    """Answers or labels with their probabilities."""
    pairs = detail.get("answers") or list((detail.get("probabilities") or {}).items())
    ranked = sorted(pairs, key=lambda pair: -pair[1])
    line = ", ".join(f"{name} {probability:.2f}" for name, probability in ranked[:4])
    return [line] if line else []


def _votes(found: Predictions, number: int) -> str:
    """The annotators' answers with their numbers."""
    votes = found.details[number].get("votes", []) if found.details else []
    return ", ".join(f"{vote} x {votes.count(vote)}" for vote in dict.fromkeys(votes))
