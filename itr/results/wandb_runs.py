"""Results read back from the service of Weights & Biases."""

from __future__ import annotations

import importlib
from typing import Any

from itr.errors import ConfigError, DataError
from itr.results.collect import Found


def runs_of_group(project: str, group: str) -> list[Found]:
    """The finished runs of ``group`` in ``project`` (or ``entity/project``), oldest first, as
    `itr.results.collect.collect` takes them (of one seed twice the later counts).

    Raises ConfigError without the package or a key, DataError where the service has no such runs.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError("--wandb: wandb is not installed; type pip install wandb") from error
    try:
        chosen = {"group": group, "state": "finished"}
        runs = list(wandb.Api().runs(project, filters=chosen, order="+created_at"))
        # `summary` holds views of nested values; `summary_metrics` is plain.
        found = [from_run(run.name, dict(run.summary_metrics), dict(run.config)) for run in runs]
    except Exception as error:  # no key, no network, no project: the package raises many kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConfigError(
            f"--wandb {group}: the runs of {project} cannot be read ({reason}); type `wandb login` "
            "(or set WANDB_API_KEY) and --project ENTITY/PROJECT, or name the run folders instead"
        ) from error
    whole = [run for run in found if any(key.endswith("rsum") for key in run.results)]
    if not whole:
        raise DataError(
            f"--wandb {group}: {len(found)} finished runs in {project}, none with results; look at "
            "the group's name, or wait for a run to finish"
        )
    return whole


def from_run(name: str, summary: dict[str, Any], config: dict[str, Any]) -> Found:
    """A run's summary and configuration, as results and configuration of ours.

    A metric that was never given a final value comes as ``{"max": ...}``: its best so far.
    """
    results = {}
    for key, value in summary.items():
        whole = isinstance(value, dict) and len(value) == 1
        results[key] = next(iter(value.values())) if whole else value
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return Found(name, {k: v for k, v in results.items() if not k.startswith("_")}, plain)
