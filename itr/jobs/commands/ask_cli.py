"""The command ``itr ask``: a question, a statement or an expression about a user's own picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from itr.command import command
from itr.data.config import DataConfig
from itr.data.images.decode import decode, read_bytes
from itr.data.items import Expression, Item, Question, Statement
from itr.data.records import Record, Split
from itr.errors import ConfigError, DataError, TrainingError
from itr.evaluation.predictions import Predictions
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.results.gallery.overlay import overlay, smooth_map
from itr.tasks.grounding_task import GroundingEvaluator
from itr.tasks.item_evaluator import ItemEvaluator
from itr.tasks.known_tasks import build_task
from itr.tasks.task import EvaluationSettings, Task
from itr.terminal import PlainConsole
from itr.training.device import resolve_device, resolve_precision

ASKED = ("vqa", "entailment", "nlvr2", "grounding")  # tasks of which one text can be asked
DESCRIPTION = """Ask a checkpoint about a picture. task=vqa: a question, answered with
probabilities; task=entailment: a statement; task=nlvr2: a statement about two pictures;
task=grounding: an expression, whose box and heat map are drawn in a picture."""


@command
def ask(arguments: Sequence[str]) -> None:
    """Answer one text about one picture."""
    parser = argparse.ArgumentParser(prog="itr ask", description=DESCRIPTION)
    parser.add_argument("checkpoint", help="run directory, checkpoint, or an authors' file")
    parser.add_argument("picture", type=Path, help="an image file")
    parser.add_argument("text", help="question, statement or expression")
    parser.add_argument("--second", type=Path, help="task=nlvr2: the second (right) picture")
    parser.add_argument("--task", choices=ASKED, help="task of an authors' file that has several")
    parser.add_argument("--answers", help="task=vqa: JSON list of answers (default: the run's)")
    parser.add_argument("--top", type=int, default=5, help="answers shown (default: 5)")
    parser.add_argument(
        "--out", type=Path, help="task=grounding: picture to write (default: grounding.png)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, {}, device, typed=False)
    task = _task(loaded, options)
    split = _split(task.name, options)
    settings = EvaluationSettings(
        loaded.model.view,
        loaded.tokenizer.tokenize([options.text], loaded.model.view.text_eval),
        loaded.tokenizer,
        batch_size=1,
        device=device,
        precision=resolve_precision(loaded.precision, device),
    )
    evaluator = task.evaluator(split, settings)
    assert isinstance(evaluator, ItemEvaluator)
    outputs = evaluator.collect(loaded.model, None)
    predicted = evaluator.predict(outputs)
    console = PlainConsole()
    if isinstance(evaluator, GroundingEvaluator):
        path = options.out or Path("grounding.png")
        _draw(options.picture, split.decoder, outputs["maps"][0], predicted.predicted[0], path)
        box = ", ".join(f"{side:g}" for side in predicted.predicted[0])
        console.print(f"box (x, y, width, height): {box}\n{path}: the box and the heat map")
        return
    for name, probability in _ranked(predicted)[: options.top]:
        console.print(f"{probability:8.4f}  {name}")


def _task(loaded: LoadedCheckpoint, options: argparse.Namespace) -> Task:
    """The task of the checkpoint, ready to predict. Raises ConfigError if it cannot be asked."""
    node = loaded.task_node({} if options.task is None else {"name": options.task})
    if node["name"] not in ASKED or node["name"] not in loaded.model.tasks:
        raise ConfigError(
            f"{loaded.path}: a checkpoint of task={node['name']}, which answers no text about a "
            f"picture; expected one of task={', '.join(ASKED)}. itr search finds images for a text"
        )
    if node["name"] == "vqa" and options.answers is not None:
        node["answer_list"] = options.answers
    if node["name"] == "grounding":
        node["proposals"] = "map"  # there is no detector
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: expected at least 1")
    task = build_task(node)
    task.restore(loaded.task_state, DataConfig(name="ask", root="."))
    return task


def _split(task: str, options: argparse.Namespace) -> Split:
    """A split of the one text. Raises DataError for a picture that cannot be read."""
    files = [options.picture] if options.second is None else [options.picture, options.second]
    if (task == "nlvr2") != (len(files) == 2):
        expected = "two pictures: pass --second PICTURE" if task == "nlvr2" else "one picture"
        raise DataError(f"--second {options.second}: task={task} looks at {expected}")
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: no such file; pass an image file")
    if not options.text.strip():
        raise DataError("the text is empty; pass a question, a statement or an expression")
    records = [
        Record(number, str(file), (options.text,) if number == 0 else (), (0,)[: 1 - number])
        for number, file in enumerate(files)
    ]
    split = Split("ask", "files", records, source=str(options.picture))
    height, width = decode(read_bytes(str(files[0])), str(files[0]), split.decoder).shape[-2:]
    items: dict[str, Item] = {
        "vqa": Question(0),
        "entailment": Statement(0),
        "nlvr2": Statement(0, second=1),
        "grounding": Expression(0, size=(width, height)),
    }
    split.items = [items[task]]
    return split


def _ranked(predicted: Predictions) -> list[tuple[str, float]]:
    """Answers, or labels, with their probabilities, the most probable first."""
    detail: dict[str, Any] = predicted.details[0]
    pairs = detail.get("answers") or list(detail["probabilities"].items())
    return sorted(((name, float(p)) for name, p in pairs), key=lambda pair: -pair[1])


def _draw(
    picture: Path, decoder: str, evidence: np.ndarray, box: Sequence[float], out: Path
) -> None:
    """Write the picture with its heat map and the box. Raises TrainingError if it cannot be."""
    pixels = decode(read_bytes(str(picture)), str(picture), decoder).permute(1, 2, 0).numpy() / 255
    heat = smooth_map(evidence, *pixels.shape[:2])
    drawn = Image.fromarray((255 * overlay(pixels, heat)).round().astype(np.uint8))
    x, y, width, height = box
    line = max(1, min(drawn.size) // 100)
    ImageDraw.Draw(drawn).rectangle((x, y, x + width, y + height), outline="white", width=line)
    try:
        drawn.save(out)
    except (OSError, ValueError) as error:
        raise TrainingError(f"--out {out}: cannot be written ({error})") from error
