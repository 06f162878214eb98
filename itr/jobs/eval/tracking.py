"""Logs an evaluation to the chosen trackers, as a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.jobs.eval.config import EvalConfig
from itr.jobs.eval.outcome import EvaluationOutcome
from itr.results.gallery.thumbnails import Thumbnails
from itr.results.hard_queries import COLUMNS, hard_queries
from itr.results.trackers.description import EVAL
from itr.results.trackers.tracker import Backends, open_backends

GROUPS = ("model", "data", "loss")  # configuration nodes whose names group runs
KEPT_IN = "the results are printed, and written with out=DIR"


def track_evaluation(
    config: EvalConfig, values: Mapping[str, Any], outcome: EvaluationOutcome
) -> None:
    """Log the metrics, the summary and, with a query log, the hardest queries.

    The logged configuration names the checkpoint's model, data and loss, which groups the run with
    its training. A failing tracker is only logged.
    """
    results = outcome.flat()
    named = {key: {**(values.get(key) or {}), "name": results.get(key)} for key in GROUPS}
    named["task"] = {**(values.get("task") or {}), "name": results.get("task", "retrieval")}
    origin: dict[str, Any] = {key: results[key] for key in ("seed", "select_on") if key in results}
    folder = Path(config.out or ".")
    split = outcome.split
    opened = open_backends(config.tracker, folder, {**values, **named, **origin}, EVAL)
    with Backends(opened, KEPT_IN) as trackers:
        numbers = {
            f"{split}/{k}": v for k, v in outcome.metrics.items() if isinstance(v, int | float)
        }
        trackers.log(numbers, step=0)
        evaluated = outcome.checkpoints
        queries = None if evaluated is None else evaluated.evaluator.query_log
        if trackers and evaluated is not None and queries is not None and queries.ranks:
            images = Thumbnails(evaluated.evaluator.data, evaluated.data, split)
            rows = hard_queries(queries, evaluated.evaluator.data, images)
            trackers.table(f"{split}/hard_queries", COLUMNS, rows)
        trackers.summary(results)
