"""A search over a sweep's parameters: Optuna asks and is told, the runner trains.

Trials are kept in ``study.db`` (SQLite); a search that was killed goes on with the trials it has.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

from itr.errors import ConfigError
from itr.sweep import run_files
from itr.sweep.grid import SEED, Job, make_job
from itr.sweep.process_pool import take_lock
from itr.sweep.runner import GRACE, POLL, Interrupt, Runner
from itr.sweep.seed_table import DONE, FAILED, PRUNED, RUNNING, Outcome
from itr.sweep.spec import Parameter, Sweep

DISTRIBUTIONS = ("uniform", "int_uniform", "q_uniform", "log_uniform", "log_uniform_values")


def load_optuna() -> Any:
    """The module. Raises ConfigError if it is not installed."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError(
            "method=optuna: Optuna is not installed; type pip install -e '.[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distribution_of(optuna: Any, parameter: Parameter, where: str) -> Any:
    """Optuna's distribution of ``parameter``, whose bounds and names are those of Weights & Biases.

    Raises ConfigError for a distribution that Optuna has not.
    """
    kinds, low, high = optuna.distributions, parameter.low, parameter.high
    if parameter.values:
        plain = (bool, int, float, str)
        return kinds.CategoricalDistribution(
            [v if isinstance(v, plain) else str(v) for v in parameter.values]
        )
    assert low is not None and high is not None
    if parameter.distribution == "int_uniform":
        return kinds.IntDistribution(int(low), int(high), step=int(parameter.step or 1))
    if parameter.distribution == "uniform":
        return kinds.FloatDistribution(low, high)
    if parameter.distribution == "q_uniform":
        return kinds.FloatDistribution(low, high, step=parameter.step or 1.0)
    if parameter.distribution == "log_uniform":  # the bounds are natural logarithms
        return kinds.FloatDistribution(math.exp(low), math.exp(high), log=True)
    if parameter.distribution == "log_uniform_values":
        if low <= 0:
            raise ConfigError(f"{where}: min {low:g} must be above 0 for log_uniform_values")
        return kinds.FloatDistribution(low, high, log=True)
    raise ConfigError(
        f"{where}.distribution: '{parameter.distribution}' is not searched here; expected one of "
        f"{', '.join(DISTRIBUTIONS)}"
    )


def make_pruner(optuna: Any, name: str | None, early_terminate: dict[str, Any]) -> Any:
    """The pruner ``name``, or that of the file; steps are validations. Raises ConfigError."""
    if name is None:
        name = "hyperband" if early_terminate else "median"
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    if early_terminate and early_terminate.get("type") != "hyperband":
        raise ConfigError("early_terminate.type: expected hyperband")
    return optuna.pruners.HyperbandPruner(
        min_resource=int(early_terminate.get("min_iter", 1)),
        max_resource=early_terminate.get("max_iter", "auto"),
        reduction_factor=int(early_terminate.get("eta", 3)),
    )


class Search:
    """A study and the trials of it that are under way."""

    def __init__(
        self, runner: Runner, sweep: Sweep, out: Path, metric: str, trials: int, pruner: str | None
    ):
        optuna = self.optuna = load_optuna()
        if metric.startswith("test/"):
            raise ConfigError(
                f"metric.name: {metric} would choose on the test split; expected val/..."
            )
        seeds = sweep.parameters.get(SEED)
        if seeds is not None and len(seeds.values) != 1:
            raise ConfigError(
                "seed: a search over seeds finds the luckiest; give one, e.g. seed=0, and repeat "
                "the best trial with others"
            )
        self.runner, self.sweep, self.out = runner, sweep, out
        self.metric, self.trials = metric, trials
        self.space = {
            key: distribution_of(optuna, parameter, f"{sweep.path}: parameters.{key}")
            for key, parameter in sweep.parameters.items()
            if len(parameter.values) != 1
        }
        if not self.space:
            raise ConfigError(f"{sweep.path}: parameters: nothing to search, all have one value")
        folder = runner.folder
        self.lock = take_lock(folder / "study.lock")
        if self.lock is None:
            raise ConfigError(f"{folder}: another call runs this search; wait for it or end it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                study_name=sweep.name,
                storage=f"sqlite:///{(folder / 'study.db').resolve()}",
                direction="maximize" if sweep.maximize else "minimize",
                pruner=make_pruner(optuna, pruner, sweep.early_terminate),
                load_if_exists=True,
            )
            # Another seed each time, or a search that goes on would repeat its first draws.
            self.study.sampler = optuna.samplers.TPESampler(
                seed=len(self.study.trials), constant_liar=len(runner.pool.slots) > 1
            )
        self._refuse_another_space()
        self.live: dict[Path, list[Any]] = {}  # run -> its trials under way
        self.reported: dict[Path, int] = {}
        self.condemned: dict[Path, float] = {}  # told to stop, and when
        self._recall()

    def close(self) -> None:
        """Let another call have the study."""
        assert self.lock is not None
        os.close(self.lock)

    def _refuse_another_space(self) -> None:
        now = {key: [repr(p.values), p.low, p.high] for key, p in self.sweep.parameters.items()}
        text = json.dumps({"parameters": now, "metric": self.metric}, sort_keys=True, default=str)
        before = self.study.user_attrs.setdefault("space", text)
        if before != text:
            raise ConfigError(
                f"{self.runner.folder}/study.db holds a search with other parameters, values or "
                "metric; move that folder away, name another with out=DIR, or undo the change"
            )
        self.study.set_user_attr("space", text)

    def _job(self, params: dict[str, Any]) -> Job:
        fixed = {k: p.values[0] for k, p in self.sweep.parameters.items() if k not in self.space}
        return make_job(self.sweep, {**fixed, **params}.items(), self.out)

    def _recall(self) -> None:
        """Take up what an earlier call left: its trials' outcomes, and those it was killed in."""
        states = self.optuna.trial.TrialState
        known = {states.COMPLETE: DONE, states.PRUNED: PRUNED, states.FAIL: FAILED}
        for trial in self.study.get_trials(states=(states.RUNNING,)):
            self.study.tell(trial.number, state=states.FAIL)
            self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        trials = self.study.get_trials()
        replaced = {trial.user_attrs.get("again") for trial in trials}
        for trial in trials:
            if trial.state in known and trial.number not in replaced:
                job = self._job(trial.params)
                outcome = Outcome(job, known[trial.state], value=trial.value)
                outcome.results = run_files.results_of(job.run) or {}
                if outcome.state == FAILED:
                    outcome.reason = f"in an earlier call; see {self.runner.pool.log_of(job)}"
                self.runner.outcomes[job.run] = outcome

    def left(self) -> int:
        """How many trials are still to be asked for; one that is asked for again counts once."""
        waiting = self.optuna.trial.TrialState.WAITING
        found = self.study.get_trials(deepcopy=False)
        asked = sum("again" not in trial.user_attrs for trial in found)
        return self.trials - asked + sum(trial.state == waiting for trial in found)

    def ask(self) -> None:
        """One more trial, which becomes a job unless its run is known."""
        trial = self.study.ask(self.space)
        job = self._job(trial.params)
        self.live.setdefault(job.run, []).append(trial)
        outcome = self.runner.outcomes.get(job.run)
        if outcome is None or outcome.state == FAILED:
            outcome = self.runner.add(job)
        if outcome.state in (DONE, PRUNED):
            self.judge(outcome)

    def judge(self, outcome: Outcome) -> None:
        """Tell the study what became of a run, once it is known."""
        states = self.optuna.trial.TrialState
        run = outcome.job.run
        if run in self.condemned and outcome.state != DONE:
            outcome.state = PRUNED
            self.runner.board.pruned(outcome)
        if outcome.state not in (DONE, FAILED, PRUNED):
            return
        outcome.value = self._value(outcome)
        for trial in self.live.pop(run, []):
            if outcome.state == PRUNED:
                self.study.tell(trial, state=states.PRUNED)
            elif outcome.state == FAILED or outcome.value is None:
                self.study.tell(trial, state=states.FAIL)
            else:
                self.study.tell(trial, outcome.value)

    def _value(self, outcome: Outcome) -> float | None:
        """The metric of the chosen checkpoint, else the best that was logged."""
        found = outcome.results.get(self.metric)
        if isinstance(found, int | float) and math.isfinite(found):
            return float(found)
        logged = [value for _, value in run_files.metrics_of(outcome.job.run, self.metric)]
        return (max if self.sweep.maximize else min)(logged, default=None)

    def look(self) -> None:
        """Report new validations of the running jobs; tell the hopeless ones to stop."""
        for run, trials in self.live.items():
            outcome = self.runner.outcomes[run]
            if outcome.state != RUNNING:
                continue
            if run in self.condemned:
                if time.monotonic() - self.condemned[run] > GRACE:
                    self.runner.pool.tell(outcome.job, signal.SIGKILL)
                continue
            values = [value for _, value in run_files.metrics_of(run, self.metric)]
            for number in range(self.reported.get(run, 0), len(values)):
                trials[0].report(values[number], number + 1)
            new, self.reported[run] = len(values) > self.reported.get(run, 0), len(values)
            if new and trials[0].should_prune() and self.runner.pool.owns(outcome.job):
                self.condemned[run] = time.monotonic()
                self.runner.pool.tell(outcome.job, signal.SIGTERM)

    def best(self) -> Outcome | None:
        """The run with the best value."""
        judged = [
            o for o in self.runner.outcomes.values() if o.state == DONE and o.value is not None
        ]
        sign = 1.0 if self.sweep.maximize else -1.0
        return max(judged, key=lambda o: sign * (o.value or 0.0), default=None)


def run_search(search: Search) -> bool:
    """Ask, train and tell until there are enough trials; True if an interrupt ended it early."""
    runner = search.runner
    runner.board.begin(list(runner.outcomes.values()), search.trials)
    with Interrupt() as interrupt, runner.board:
        while not interrupt.count:
            while not runner.waiting and runner.pool.free() and search.left() > 0:
                search.ask()
            if not runner.waiting and not runner.pool.running:
                break
            runner.fill()
            search.look()
            for ended in runner.pool.poll():
                search.judge(runner.settle(ended, stopping=ended.job.run in search.condemned))
                runner.save(searched=True)
            runner.board.refresh(runner.outcomes.values())
            time.sleep(POLL)
        if interrupt.count:
            runner.stop(interrupt)
    runner.save(searched=True)
    return bool(interrupt.count)
