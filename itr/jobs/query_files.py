"""Writes the per-query results of an evaluation, from which galleries are made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itr.data.layouts.registry import DataConfig
from itr.evaluation.evaluator import Evaluator
from itr.evaluation.predictions import Predictions
from itr.files import atomic_write, explain_write_error
from itr.results.gallery.item_page import SOURCE
from itr.tasks.task import Task


def save_queries(
    evaluator: Evaluator,
    folder: Path,
    split: str,
    results: Mapping[str, Any],
    data: DataConfig,
    checkpoints: Sequence[Path] = (),
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Write the per-query ranks and answers of ``evaluator`` next to the ``results`` in ``folder``.

    A gallery reads the images through ``data`` and loads the models from ``checkpoints`` (none: the
    one in ``folder``) with ``overrides``, the model options that the user passed.
    """
    assert evaluator.query_log is not None
    root = str(Path(data.root).expanduser().absolute())  # a gallery may be made from elsewhere
    metadata = {
        "checkpoints": [str(path.expanduser().absolute()) for path in checkpoints],
        "model_options": _with_absolute_paths(overrides or {}),
        "rerank_k": results.get(f"{split}/rerank_k"),
        "rerank_checkpoint": results.get("rerank_checkpoint"),
        "kind": evaluator.view.kind,
        "data": dataclasses.asdict(dataclasses.replace(data, root=root)),
    }
    evaluator.query_log.save(folder, split, metadata)


def save_predictions(
    task: Task, predictions: Predictions, folder: Path, split: str, data: DataConfig
) -> list[str]:
    """Write the predictions, where their pictures are, and what a server of the task wants.

    Returns lines about the latter. Raises TrainingError if a file cannot be written.
    """
    predictions.save(folder, split)
    root = str(Path(data.root).expanduser().absolute())  # a gallery may be made from elsewhere
    path = folder / SOURCE.format(split=split)
    node = dataclasses.asdict(dataclasses.replace(data, root=root))
    with explain_write_error(path, "the data of the predictions"), atomic_write(path) as file:
        file.write(json.dumps(node).encode())
    return task.submit(predictions, folder, split)


def _with_absolute_paths(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Model options of `load_checkpoint` with the folders of text encoders made absolute."""
    text = {
        key: str(Path(value).expanduser().absolute())
        if key in ("name", "tokenizer") and value and Path(value).expanduser().exists()
        else value
        for key, value in (overrides.get("text") or {}).items()
    }
    return {**overrides, "text": text}
