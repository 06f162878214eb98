"""What a model predicted for every item of a split, as a file that comparisons and galleries read.

Q items.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itr.errors import DataError
from itr.files import atomic_write, explain_write_error, parse_json

FILE = "predictions-{split}.jsonl"
ACCURACY = "accuracy"  # the main metric of every task with items


@dataclass
class Predictions:
    """One prediction per item. ``score`` is between 0 (wrong) and 1, NaN without a known answer."""

    task: str
    ids: list[int | str]
    image_ids: list[int]  # of the dataset
    texts: list[str]  # questions, statements or expressions
    predicted: list[Any]  # an answer, the name of a label, or a box
    truth: list[Any]  # None: not published
    scores: np.ndarray  # [Q] float64
    subsets: list[str | None]  # of a split that has several, such as testA
    details: list[dict[str, Any]] = field(default_factory=list)  # probabilities and the like

    def scored(self) -> Iterator[tuple[str | None, np.ndarray]]:
        """(None, which items [Q] have a known answer), then the same for each subset.

        A subset without such items is left out, and so is the whole.
        """
        known = np.isfinite(self.scores)
        names = (name for name in dict.fromkeys(self.subsets) if name is not None)
        for subset in (None, *names):
            members = known & np.array([subset in (None, name) for name in self.subsets], bool)
            if members.any():
                yield subset, members

    def save(self, folder: Path, split: str) -> Path:
        """Write one JSON object per item to ``folder``; returns the path.

        Raises TrainingError if it cannot be written.
        """
        path = Path(folder) / FILE.format(split=split)
        with explain_write_error(path, "the predictions"), atomic_write(path) as file:
            for row in self._rows():
                file.write((json.dumps(row) + "\n").encode())
        return path

    def _rows(self) -> list[dict[str, Any]]:
        details = self.details or [{}] * len(self.ids)
        columns = zip(
            self.ids, self.image_ids, self.texts, self.predicted, self.truth, self.scores.tolist(),
            self.subsets, details, strict=True,
        )  # fmt: skip
        names = ("id", "image_id", "text", "predicted", "truth", "score", "subset")
        rows = []
        for *values, detail in columns:
            row = {"task": self.task, **dict(zip(names, values, strict=True)), **detail}
            row["score"] = None if row["score"] != row["score"] else row["score"]
            rows.append(row)
        return rows


def predictions_path(folder: Path, split: str) -> Path:
    """Where `Predictions.save` writes."""
    return Path(folder) / FILE.format(split=split)


def read_predictions(folder: Path, split: str) -> Predictions:
    """Read what `Predictions.save` wrote. Raises DataError if the file is missing or malformed."""
    path = predictions_path(folder, split)
    try:
        lines = path.read_text("utf-8").split("\n")  # splitlines() would end lines inside a text
        rows = [_checked(parse_json(line)) for line in lines if line]
        known = ("task", "id", "image_id", "text", "predicted", "truth", "score", "subset")
        scores = [np.nan if row["score"] is None else float(row["score"]) for row in rows]
        return Predictions(
            rows[0]["task"],
            [row["id"] for row in rows],
            [row["image_id"] for row in rows],
            [row["text"] for row in rows],
            [row["predicted"] for row in rows],
            [row["truth"] for row in rows],
            np.array(scores, dtype=np.float64),
            [row["subset"] for row in rows],
            [{k: v for k, v in row.items() if k not in known} for row in rows],
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; evaluate the run first, with out={folder}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: not a file of predictions ({error!r}); evaluate again with out={folder}"
        ) from error


def _checked(row: Any) -> dict[str, Any]:
    """``row`` if its values have the types that comparisons and galleries rely on.

    Raises ValueError or KeyError otherwise.
    """
    score, subset = row["score"], row["subset"]
    fits = (
        all(isinstance(row[key], str) for key in ("task", "text"))
        and all(isinstance(row[key], int | str) for key in ("id", "image_id"))
        and (subset is None or isinstance(subset, str))
        and (score is None or (isinstance(score, int | float) and 0 <= score <= 1))
        and all(_is_prediction(row["task"], row[key]) for key in ("predicted", "truth"))
        and all(map(_is_weighted, row.get("answers") or ()))
        and all(map(_is_weighted, (row.get("probabilities") or {}).items()))
        and all(isinstance(vote, str) for vote in row.get("votes") or ())
    )
    if not fits:
        raise ValueError(f"item {row['id']!r} holds values of other types")
    return dict(row)


def _is_prediction(task: str, value: Any) -> bool:
    """Whether ``value`` can be one of ``task``: a box, or an answer or the name of a label."""
    if value is None or task != "grounding":
        return value is None or isinstance(value, str | int)
    numbers = isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    return numbers and len(value) == 4


def _is_weighted(pair: Any) -> bool:
    """Whether ``pair`` is a text with its probability."""
    name, probability = pair
    return isinstance(name, str) and isinstance(probability, int | float)
