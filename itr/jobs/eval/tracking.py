"""Logs an evaluation as a Weights & Biases run if ``tracker=wandb``."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.jobs.eval.config import EvalConfig
from itr.jobs.eval.outcome import EvaluationOutcome
from itr.results.gallery.thumbnails import Thumbnails
from itr.results.hard_queries import COLUMNS, hard_queries
from itr.results.trackers.config import TrackerConfig
from itr.results.trackers.wandb_backend import EVAL, resolve_mode, start_wandb

log = logging.getLogger("itr")
GROUPS = ("model", "data", "loss")  # configuration nodes whose names group runs


def tracking_enabled(config: TrackerConfig) -> bool:
    """Whether ``config`` asks for a tracker.

    Raises ConfigError for ``mode=online`` without an API key, before the evaluation begins.
    """
    if config.name == "none" or config.mode == "disabled":
        return False
    if config.mode == "online":
        try:
            resolve_mode(config.mode, importlib.import_module("wandb"))
        except ImportError:  # `track_evaluation` reports it
            pass
    return True


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
    sink = start_wandb(config.tracker, folder, {**values, **named, **origin}, EVAL)
    if sink is None:
        return
    split = outcome.split
    try:
        numbers = {
            f"{split}/{k}": v for k, v in outcome.metrics.items() if isinstance(v, int | float)
        }
        sink.log(numbers, step=0)
        evaluated = outcome.checkpoints
        queries = None if evaluated is None else evaluated.evaluator.query_log
        if evaluated is not None and queries is not None and queries.ranks:
            images = Thumbnails(evaluated.evaluator.data, evaluated.data, split)
            rows = hard_queries(queries, evaluated.evaluator.data, images)
            sink.table(f"{split}/hard_queries", COLUMNS, rows)
        sink.summary(results)
        sink.finish()
    except Exception as error:  # the results are printed in any case
        log.warning("Weights & Biases stopped working (%s)", error)
