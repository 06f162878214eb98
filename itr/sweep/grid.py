"""Expands a sweep into jobs. All configurations are checked before the first job starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itr.compose import compose_values
from itr.errors import ConfigError
from itr.jobs import run_dir
from itr.sweep.spec import Sweep, SweepParameter, argument
from itr.training.config import check_config

SEED = "seed"


@dataclass(frozen=True)
class SweepJob:
    """One run: its ``arguments`` for train.py and its run directory."""

    arguments: tuple[str, ...]
    choices: dict[str, Any]  # its values of the keys that the sweep varies
    run: Path
    devices: int = 1
    on_cpu: bool = False
    values: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key(self) -> str:
        """Hash of the resolved configuration."""
        return run_dir.config_hash(self.values)

    @property
    def label(self) -> str:
        """The varied keys as command-line arguments."""
        return " ".join(argument(*choice) for choice in self.choices.items()) or self.run.name


def compose(overrides: Sequence[str], where: str) -> dict[str, Any]:
    """The resolved and checked configuration of ``train.py`` with ``overrides``.

    Raises ConfigError that begins with ``where`` and names the key and its nearest neighbors.
    """
    try:
        values = compose_values("train", overrides)
        check_config(values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return values


def make_job(sweep: Sweep, choices: Iterable[tuple[str, Any]], out: Path) -> SweepJob:
    """The job with these values of all parameters. Raises ConfigError if it cannot run."""
    chosen = dict(choices)
    arguments = [*(argument(*choice) for choice in chosen.items()), *sweep.extra]
    values = compose(arguments, f"{sweep.path} ({' '.join(arguments)})")
    return SweepJob(
        tuple(arguments),
        {key: value for key, value in chosen.items() if key in sweep.varied},
        out / run_dir.run_path({**values, "out": None}).name,
        int(values["devices"]) * int(values["nodes"]),
        values["device"] == "cpu",
        values,
    )


def grid_jobs(sweep: Sweep, out: Path) -> list[SweepJob]:
    """Every combination of the values in the order of the file. The last key varies fastest, the
    seed faster still.

    Raises ConfigError for a sweep that is not a grid or a job that cannot run.
    """
    ranged = [key for key, parameter in sweep.parameters.items() if not parameter.values]
    if sweep.method != "grid" or ranged:
        reason = f"parameters.{ranged[0]} is a range" if ranged else f"method is {sweep.method}"
        raise ConfigError(
            f"{sweep.path}: not a grid ({reason}); pass method=optuna trials=30 for a search"
        )
    keys = sorted(sweep.parameters, key=lambda key: key == SEED)
    jobs = [
        make_job(sweep, zip(keys, values, strict=True), out)
        for values in itertools.product(*(sweep.parameters[key].values for key in keys))
    ]
    _refuse_equal_runs(sweep, jobs)
    return jobs


def endpoints(parameter: SweepParameter) -> tuple[Any, ...]:
    """The values of ``parameter``, or the two ends of its range."""
    if parameter.values:
        return parameter.values
    kind = int if parameter.distribution == "int_uniform" else float
    return tuple(kind(end) for end in (parameter.low, parameter.high) if end is not None)


def one_at_a_time(sweep: Sweep) -> list[dict[str, Any]]:
    """The first value of every key, then each other value with the first value of the rest."""
    first = {key: endpoints(parameter)[0] for key, parameter in sweep.parameters.items()}
    others = [
        {**first, key: value}
        for key, parameter in sweep.parameters.items()
        for value in endpoints(parameter)[1:]
    ]
    return [first, *others]


def _refuse_equal_runs(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    seen: dict[Path, SweepJob] = {}
    for job in jobs:
        other = seen.setdefault(job.run, job)
        if other is not job:
            raise ConfigError(
                f"{sweep.path}: '{other.label}' and '{job.label}' resolve to the same run "
                f"({job.run.name}); remove one of them"
            )
