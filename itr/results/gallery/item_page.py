"""Builds the gallery page of a task with items: questions, statements, boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from itr.data.config import DataConfig
from itr.data.downstream.open import open_items
from itr.data.items import Expression, Statement
from itr.data.records import Split
from itr.errors import DataError
from itr.evaluation.predictions import Predictions, predictions_path, read_predictions
from itr.files import parse_json
from itr.instantiate import check
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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("itr.results.gallery", "."), autoescape=True, trim_blocks=True
    )
    known = np.isfinite(run.predictions.scores)
    facts = [
        ("task", run.predictions.task),
        ("split", run.split_name),
        ("items", len(known)),
        ("data", run.split.source),
    ]
    if known.any():
        facts.insert(2, ("accuracy", f"{100 * run.predictions.scores[known].mean():.2f} %"))
    return environment.get_template(TEMPLATE).render(
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


def _case(run: PredictedRun, number: int) -> dict[str, Any]:
    """What the page shows of one item."""
    found, score = run.predictions, float(run.predictions.scores[number])
    item = (run.split.items or ())[number]
    images = [int(run.split.text_to_image[number])]
    if isinstance(item, Statement) and item.second is not None:
        images.append(item.second)
    case: dict[str, Any] = {
        "pictures": [_picture(run, image) for image in images],
        "text": found.texts[number],
        "predicted": found.predicted[number],
        "truth": found.truth[number],
        "score": None if np.isnan(score) else score,
        "verdict": "" if np.isnan(score) else "right" if score >= 0.5 else "wrong",
        "details": _details(found.details[number] if found.details else {}),
    }
    if isinstance(item, Expression):
        named = (("truth", found.truth[number]), ("predicted", found.predicted[number]))
        case["boxes"] = [
            dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"kind": kind}
            for kind, box in named
            if box is not None
        ]
        case["size"] = item.size or (1, 1)
        case["predicted"], case["truth"] = "dashed: predicted", "solid line"
    return case


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
    lines = [", ".join(f"{name} {probability:.2f}" for name, probability in ranked[:4])]
    if votes := detail.get("votes"):
        lines.append(f"votes: {', '.join(f'{v} x {votes.count(v)}' for v in dict.fromkeys(votes))}")
    return [line for line in lines if line]
