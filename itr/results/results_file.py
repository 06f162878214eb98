"""Reads and writes ``results.json``, the flat results of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.errors import DataError
from itr.files import atomic_write, explain_write_error

RESULTS = "results.json"


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
    """Read what `write_results` wrote. Raises DataError if the file is missing or malformed."""
    path = Path(run_dir) / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; the run has not finished (resume it with resume=auto)"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path}: not valid JSON ({error}); delete it and evaluate again: "
            f"python eval.py checkpoint={run_dir} out={run_dir}"
        ) from error
    if not isinstance(results, dict):
        raise DataError(f"{path}: contains a {type(results).__name__}; expected a JSON object")
    return results
