"""Reads and writes ``results.json``, the flat results of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.errors import DataError
from itr.files import atomic_write, explain_write_error, parse_json

RESULTS = "results.json"
# Last parts of keys, by the type that tables rely on; all other values are numbers, text or null.
COUNTS = re.compile(r"n_\w+|updates|best_updates|ensemble")
NUMBERS = re.compile(
    r"[it]2[it]_\w+|rsum|rmean|accuracy\w*|consistency|pointing|top1|mean_per_class"
)
TEXTS = re.compile(r"model|data|loss|task|trained_on|select_on|protocol|tie_break|run|reported")


def write_results(run_dir: Path, results: Mapping[str, Any]) -> Path:
    """Write ``results`` to ``run_dir``/results.json atomically; returns the path.

    Raises TrainingError if it cannot be written.
    """
    path = Path(run_dir) / RESULTS
    text = json.dumps(results, indent=2) + "\n"
    with explain_write_error(path, "the results"), atomic_write(path) as file:
        file.write(text.encode())
    return path


def read_results(run_dir: Path) -> dict[str, Any]:
    """Read what `write_results` wrote.

    Raises DataError if the file is missing or malformed, or if a value has another type than tables
    rely on.
    """
    path = Path(run_dir) / RESULTS
    try:
        results = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; the run has not finished (resume it with resume=auto)"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); {_again(run_dir)}") from error
    if not isinstance(results, dict):
        raise DataError(f"{path}: contains a {type(results).__name__}; expected a JSON object")
    for key, value in results.items():
        if (expected := _fault(key.rpartition("/")[2], value)) is not None:
            shown = json.dumps(value)
            raise DataError(
                f"{path}: '{key}' is {shown if len(shown) < 60 else shown[:57] + '...'}; expected "
                f"{expected}. The file was changed or damaged: {_again(run_dir)}"
            )
    return results


def _again(run_dir: Path) -> str:
    return f"delete it and evaluate again: python eval.py checkpoint={run_dir} out={run_dir}"


def _fault(name: str, value: Any) -> str | None:
    """What was expected of ``value`` under the key's last part ``name``; None: it fits."""
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if COUNTS.fullmatch(name):
        fits = is_number and value >= 0 and abs(value) < 2**53 and value == int(value)
        return None if fits else "a whole number"
    if NUMBERS.fullmatch(name):
        return None if is_number and abs(value) < 1e15 or value != value else "a number"
    if TEXTS.fullmatch(name):
        return None if isinstance(value, str) else "text"
    return "a number, text or null" if isinstance(value, list | dict) else None
