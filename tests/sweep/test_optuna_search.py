"""Searches with Optuna: proposing, pruning, killing, continuing. Jobs are the stand-in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from itr.sweep import process_pool, run_files
from itr.sweep.cli import main
from itr.sweep.optuna_search import distribution_of
from itr.sweep.spec import SweepParameter
from tests.sweep.conftest import finish, start, wait_for

Write = Callable[..., Path]
RATE = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
States = optuna.trial.TrialState


def study(runs: Path) -> optuna.Study:
    """The study of sweep "tiny", read anew."""
    path = runs / "sweeps" / "tiny" / "study.db"
    return optuna.load_study(study_name="tiny", storage=f"sqlite:///{path}")


def runs_of(runs: Path) -> list[dict[str, Any]]:
    """The lines of table.json, in the table's order."""
    return json.loads((runs / "sweeps" / "tiny" / "table.json").read_text())["runs"]


def test_trials_are_pruned_stored_and_continued(
    sweep_file: Write,
    stand_in: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN_WATCHED", "1")
    monkeypatch.setattr(process_pool, "POLL", 0.02)
    metric_values = run_files.metric_values

    def watched(run: Path, key: str) -> list[float]:
        """Let the stand-in continue once its last step was read."""
        values = metric_values(run, key)
        if values:
            (run / "seen").write_text(str(len(values)))
        return values

    monkeypatch.setattr(run_files, "metric_values", watched)
    path = sweep_file({"optim.lr": RATE, "trainer.epochs": {"value": 4}}, method="bayes")
    runs = stand_in / "runs"
    assert main([str(path), "method=optuna", "trials=10"]) == 0
    printed = capsys.readouterr().out
    trials = study(runs).trials
    assert len(trials) == 10
    pruned = [trial for trial in trials if trial.state == States.PRUNED]
    complete = [trial for trial in trials if trial.state == States.COMPLETE]
    assert len(pruned) + len(complete) == 10 and pruned and len(complete) >= 5
    stopped = [run for run in runs_of(runs) if run["state"] == "pruned"]
    assert len(stopped) == len(pruned)
    for run in stopped:
        assert not (Path(run["run"]) / "results.json").exists()
    # The stored value is the one in the results; the best trial is the one nearest to 1e-3.
    for trial in complete:
        (run,) = [r for r in runs_of(runs) if r["optim.lr"] == trial.params["optim.lr"]]
        assert trial.value == run["val/rsum"] == run["value"]
    best = max(complete, key=lambda trial: trial.value or 0.0)
    assert f"optim.lr={best.params['optim.lr']}" in printed.split("best val/rsum")[1]
    page = (runs / "sweeps" / "tiny" / "table.md").read_text()
    assert f"| {best.params['optim.lr']} | 1 |" in page.split("|---|\n")[1].splitlines()[0]

    assert main([str(path), "method=optuna", "trials=10"]) == 0  # enough already
    assert len(study(runs).trials) == 10
    assert main([str(path), "method=optuna", "trials=11", "pruner=none"]) == 0
    assert len(study(runs).trials) == 11
    assert main([str(path), "method=optuna", "trials=12", "trainer.epochs=5"]) == 2
    assert "study.db" in capsys.readouterr().err


@pytest.mark.soak
def test_a_killed_search_continues_its_trials(sweep_file: Write, stand_in: Path) -> None:
    path = sweep_file({"optim.lr": RATE, "trainer.epochs": {"value": 6}})
    runs = stand_in / "runs"
    arguments = (str(path), "method=optuna", "trials=4", "jobs=2")
    first = start(*arguments, cwd=stand_in, STAND_IN_SECONDS="0.5")
    wait_for(lambda: len(list(runs.glob("*/metrics.jsonl"))) == 2)
    first.kill()
    first.wait()
    code, printed = finish(start(*arguments, cwd=stand_in))
    assert code == 0, printed
    trials = study(runs).trials
    assert sum(trial.state == States.COMPLETE for trial in trials) == 4
    assert {trial.state for trial in trials} == {States.COMPLETE, States.FAIL}
    assert len(list(runs.glob("*/results.json"))) == len(list(runs.glob("*/started"))) == 4
    assert len(runs_of(runs)) == 4


@pytest.mark.soak
def test_a_search_has_one_runner(sweep_file: Write, stand_in: Path) -> None:
    path = sweep_file({"optim.lr": RATE, "trainer.epochs": {"value": 60}})
    arguments = (str(path), "method=optuna", "trials=1")
    first = start(*arguments, cwd=stand_in, STAND_IN_SECONDS="0.5")
    wait_for(lambda: bool(list((stand_in / "runs").glob("*/metrics.jsonl"))))
    assert main([str(path), *arguments[1:]]) == 2
    assert first.poll() is None
    first.terminate()
    assert finish(first)[0] == 130
    assert list((stand_in / "runs").glob("*/saved"))


@pytest.mark.parametrize(
    ("parameters", "options", "arguments", "message"),
    [
        ({"seed": {"values": [0, 1]}}, {}, [], "seed=0"),
        (
            {"optim.lr": RATE},
            {"metric": {"name": "test/rsum", "goal": "maximize"}},
            [],
            "test/rsum",
        ),
        ({"optim.lr": {**RATE, "distribution": "beta"}}, {}, [], "beta"),
        ({"optim.lr": {**RATE, "min": 0}}, {}, [], "min 0"),
        ({}, {}, [], "parameters"),
        ({"optim.lr": RATE}, {}, ["dry=true"], "dry=true"),
    ],
)
def test_a_search_that_makes_no_sense(
    parameters: dict[str, Any],
    options: dict[str, Any],
    arguments: list[str],
    message: str,
    sweep_file: Write,
    stand_in: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = sweep_file(parameters, **options)
    assert main([str(path), "method=optuna", "trials=3", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list((stand_in / "runs").glob("hrem*"))


def test_distributions_are_those_of_the_file() -> None:
    kinds = optuna.distributions
    q_uniform = SweepParameter("a", (), "q_uniform", 0, 1, 0.25)
    log_uniform = SweepParameter("a", (), "log_uniform", 0, 1)
    for parameter, expected in (
        (SweepParameter("a", (True, [1, 2])), kinds.CategoricalDistribution([True, "[1, 2]"])),
        (SweepParameter("a", (), "int_uniform", 1, 9, 2), kinds.IntDistribution(1, 9, step=2)),
        (SweepParameter("a", (), "uniform", 0.5, 2), kinds.FloatDistribution(0.5, 2.0)),
        (
            q_uniform,
            kinds.FloatDistribution(0, 1, step=0.25),
        ),
        (
            log_uniform,
            kinds.FloatDistribution(1, math.e, log=True),
        ),
    ):
        assert distribution_of(optuna, parameter, "here") == expected
