"""Reads the results of runs from the Weights & Biases service."""

from __future__ import annotations

import importlib
from typing import Any

from itr.errors import ConfigError, DataError
from itr.results.collect import INDICATORS, StoredRun


def runs_of_group(project: str, group: str) -> list[StoredRun]:
    """The finished runs of ``group`` in ``project`` (or ``entity/project``), oldest first, so that
    `collect` uses the newer of two runs with the same seed.

    Raises ConfigError if the package or a key is missing, DataError if there are no such runs.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError("--wandb: wandb is not installed; run pip install wandb") from error
    try:
        filters = {"group": group, "state": "finished"}
        runs = list(wandb.Api().runs(project, filters=filters, order="+created_at"))
        # `summary` holds views of nested values; `summary_metrics` is plain.
        read = [from_run(run.name, dict(run.summary_metrics), dict(run.config)) for run in runs]
    except Exception as error:  # no key, no network, no project: the package raises many types
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConfigError(
            f"--wandb {group}: the runs of {project} cannot be read ({reason}); run `wandb login` "
            "(or set WANDB_API_KEY) and pass --project ENTITY/PROJECT, or pass run directories"
        ) from error
    with_results = [run for run in read if any(key.endswith(INDICATORS) for key in run.results)]
    if not with_results:
        raise DataError(
            f"--wandb {group}: {len(read)} finished runs in {project}, none with results; check "
            "the name of the group, or wait for a run to finish"
        )
    return with_results


def from_run(name: str, summary: dict[str, Any], config: dict[str, Any]) -> StoredRun:
    """Convert the summary and configuration of a W&B run.

    A metric without a final value is stored as ``{"max": ...}``, its best value so far.
    """
    results = {}
    for key, value in summary.items():
        nested = isinstance(value, dict) and len(value) == 1
        results[key] = next(iter(value.values())) if nested else value
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    return StoredRun(name, {k: v for k, v in results.items() if not k.startswith("_")}, options)
