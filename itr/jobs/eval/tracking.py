"""An evaluation as a run of Weights & Biases, where ``tracker=wandb`` asks for one."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itr.data.layouts.registry import DataConfig
from itr.evaluation.evaluator import Evaluator
from itr.results.gallery.thumbnails import Thumbnails
from itr.results.hard_queries import COLUMNS, hard_queries
from itr.results.trackers.wandb_backend import EVAL, TrackerConfig, pick_mode, start_wandb

log = logging.getLogger("itr")
NAMED = ("model", "data", "loss")  # nodes by whose names runs are grouped


def tracked(config: TrackerConfig) -> bool:
    """Whether there is something to track with. Raises ConfigError for ``mode=online`` without a
    key, before the work begins."""
    if config.name == "none" or config.mode == "disabled":
        return False
    if config.mode == "online":
        try:
            pick_mode(config.mode, importlib.import_module("wandb"))
        except ImportError:  # `track` says so
            pass
    return True


def track(
    config: TrackerConfig,
    folder: Path,
    values: Mapping[str, Any],
    results: Mapping[str, Any],
    split: str,
    seen: tuple[Evaluator, DataConfig] | None = None,
) -> None:
    """Numbers, summary and, of an evaluator that holds its queries, the hardest of them.

    The configuration names the checkpoint's model, data and loss, so that the run stands beside
    its training.
    """
    named = {key: {**(values.get(key) or {}), "name": results.get(key)} for key in NAMED}
    origin = {key: results[key] for key in ("seed", "select_on") if key in results}
    sink = start_wandb(config, folder, {**values, **named, **origin}, EVAL)
    if sink is None:
        return
    try:
        numbers = {
            key: value
            for key, value in results.items()
            if key.startswith(f"{split}/") and isinstance(value, int | float)
        }
        sink.log(numbers, step=0)
        if seen is not None and (queries := seen[0].query_log) is not None and queries.ranks:
            pictures = Thumbnails(seen[0].data, seen[1], split)
            rows = hard_queries(queries, seen[0].data, pictures)
            sink.table(f"{split}/hard_queries", COLUMNS, rows)
        sink.summary(results)
        sink.finish()
    except Exception as error:  # the numbers are printed whatever becomes of the tracker
        log.warning("Weights & Biases stopped working (%s)", error)
