"""Searches a sweep's parameters with Optuna: it proposes trials, the runner trains them.

Trials are stored in ``study.db`` (SQLite). A search that was killed continues with them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from itr.errors import ConfigError
from itr.sweep import run_files
from itr.sweep.grid import SEED, SweepJob, make_job
from itr.sweep.process_pool import lock_file
from itr.sweep.runner import Runner, wait_for_work
from itr.sweep.seed_table import DONE, FAILED, PRUNED, JobOutcome
from itr.sweep.spec import Sweep, SweepParameter

DISTRIBUTIONS = ("uniform", "int_uniform", "q_uniform", "log_uniform", "log_uniform_values")


def load_optuna() -> Any:
    """Import Optuna. Raises ConfigError if it is not installed."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigError(
            "method=optuna: Optuna is not installed; run pip install -e '.[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distribution_of(optuna: Any, parameter: SweepParameter, where: str) -> Any:
    """Optuna's distribution for ``parameter``, which follows the conventions of Weights & Biases.

    Raises ConfigError for a distribution without a counterpart in Optuna.
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
        f"{where}.distribution: '{parameter.distribution}' is not supported; expected one of "
        f"{', '.join(DISTRIBUTIONS)}"
    )


def make_pruner(optuna: Any, name: str | None, early_terminate: dict[str, Any]) -> Any:
    """The pruner ``name``, by default the one of the file. Its steps are validations.

    Raises ConfigError for an ``early_terminate`` that Optuna cannot do.
    """
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


def open_study(path: Path, name: str, maximize: bool, pruner: Any) -> Any:
    """The study ``name`` in the SQLite file ``path``, which is made if it is missing.

    Raises ConfigError for a file that is damaged, or no study of this version of Optuna.
    """
    optuna = load_optuna()
    with _explained(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if path.exists():
            _require_sound(path)
        study = optuna.create_study(
            study_name=name,
            storage=f"sqlite:///{path.resolve()}",
            direction="maximize" if maximize else "minimize",
            pruner=pruner,
            load_if_exists=True,
        )
        study.get_trials()  # a damaged one is found now
    return study


def _require_sound(path: Path) -> None:
    """Raise sqlite3.DatabaseError for a file that is damaged or no database."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever a damaged study raises becomes a ConfigError that names ``path``."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of SQLite, SQLAlchemy, Optuna and JSON
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"{path}: the trials of the search cannot be read ({reason}); restore the file, or "
            "move it away to begin the search anew (its runs stay where they are)"
        ) from error


class OptunaSearch:
    """A study and the trials that run in the slots of ``runner``."""

    def __init__(
        self, runner: Runner, sweep: Sweep, out: Path, metric: str, trials: int, pruner: str | None
    ):
        self.optuna = load_optuna()
        self.runner, self.sweep, self.out = runner, sweep, out
        self.metric, self.trials = metric, trials
        self.space = self._space()
        self.study = self._open_study(pruner)
        self._lock = threading.Lock()  # for the study and for Hydra, which is global
        with _explained(self._file):
            self._refuse_other_space()
            self._restore()

    def _space(self) -> dict[str, Any]:
        """Key -> distribution of the parameters that vary. Raises ConfigError."""
        if self.metric.startswith("test/"):
            raise ConfigError(
                f"metric.name: {self.metric} would select on the test split; expected val/..."
            )
        seeds = self.sweep.parameters.get(SEED)
        if seeds is not None and len(seeds.values) != 1:
            raise ConfigError(
                "seed: a search over seeds would only select a lucky one; pass a single seed such "
                "as seed=0 and repeat the best trial with others"
            )
        space = {
            key: distribution_of(self.optuna, parameter, f"{self.sweep.path}: parameters.{key}")
            for key, parameter in self.sweep.parameters.items()
            if len(parameter.values) != 1
        }
        if not space:
            raise ConfigError(
                f"{self.sweep.path}: parameters: every key has one value; expected at least one "
                "with values or min and max"
            )
        return space

    def _open_study(self, pruner: str | None) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            made = make_pruner(self.optuna, pruner, self.sweep.early_terminate)
            study = open_study(self._file, self.sweep.name, self.sweep.maximize, made)
            # The seed changes with each call, or a continued search would repeat its first draws.
            study.sampler = self.optuna.samplers.TPESampler(
                seed=len(study.trials), constant_liar=self.runner.pool.size > 1
            )
        return study

    @property
    def _file(self) -> Path:
        return self.runner.folder / "study.db"

    def _refuse_other_space(self) -> None:
        now = {key: [repr(p.values), p.low, p.high] for key, p in self.sweep.parameters.items()}
        text = json.dumps({"parameters": now, "metric": self.metric}, sort_keys=True, default=str)
        before = self.study.user_attrs.setdefault("space", text)
        if before != text:
            raise ConfigError(
                f"{self._file}: holds a search with other parameters, values or "
                "metric; move that folder, pass another out=DIR, or undo the change"
            )
        self.study.set_user_attr("space", text)

    def _restore(self) -> None:
        """Restore the outcomes of an earlier call and queue the trials it was killed in."""
        states = self.optuna.trial.TrialState
        for trial in self.study.get_trials():
            if trial.state != states.WAITING and not self._fits(trial):
                raise ConfigError(
                    f"{self._file}: trial {trial.number} has other parameters than "
                    f"{self.sweep.path}; the file was changed: restore it, or move it away"
                )
        known = {states.COMPLETE: DONE, states.PRUNED: PRUNED, states.FAIL: FAILED}
        for trial in self.study.get_trials(states=(states.RUNNING,)):
            self.study.tell(trial.number, state=states.FAIL)
            self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        trials = self.study.get_trials()
        replaced = {trial.user_attrs.get("again") for trial in trials}
        for trial in trials:
            if trial.state in known and trial.number not in replaced:
                job = self._job(trial.params)
                outcome = JobOutcome(job, known[trial.state], value=trial.value)
                outcome.results = run_files.results_of(job.run) or {}
                if outcome.state == FAILED:
                    outcome.reason = f"in an earlier call; see {self.runner.pool.log_path(job)}"
                self.runner.outcomes[job.run] = outcome

    def _fits(self, trial: Any) -> bool:
        """Whether its parameters, which become arguments of train.py, are those of the sweep."""
        return set(trial.params) <= set(self.space) and all(
            trial.distributions[key] == self.space[key] for key in trial.params
        )

    def _job(self, params: dict[str, Any]) -> SweepJob:
        fixed = {k: p.values[0] for k, p in self.sweep.parameters.items() if k not in self.space}
        return make_job(self.sweep, {**fixed, **params}.items(), self.out)

    def run_trials(self) -> None:
        """Run trials one after another until there are enough of them or the sweep stops."""
        while not self.runner.pool.stopping.is_set():
            with self._lock:
                if self._missing_trials() <= 0:
                    return
                trial = self.study.ask(self.space)
                job = self._job(trial.params)
                outcome = self.runner.outcomes.get(job.run)
                if outcome is None or outcome.state == FAILED:
                    outcome = self.runner.add(job)
            self.runner.run(outcome, self._pruning_check(trial, job.run))
            with self._lock:
                self._report(trial, outcome)
            self.runner.save()

    def _missing_trials(self) -> int:
        """The number of trials still to be proposed; a repeated one counts once."""
        waiting = self.optuna.trial.TrialState.WAITING
        trials = self.study.get_trials(deepcopy=False)
        proposed = sum("again" not in trial.user_attrs for trial in trials)
        return self.trials - proposed + sum(trial.state == waiting for trial in trials)

    def _pruning_check(self, trial: Any, run: Path) -> Callable[[], bool]:
        """A function that reports new validations of ``run`` and says whether to prune it."""
        reported = 0

        def hopeless() -> bool:
            nonlocal reported
            values = run_files.metric_values(run, self.metric)
            if len(values) <= reported:
                return False
            with self._lock:
                for step in range(reported, len(values)):
                    trial.report(values[step], step + 1)
                reported = len(values)
                return bool(trial.should_prune())

        return hopeless

    def _report(self, trial: Any, outcome: JobOutcome) -> None:
        """Store the outcome of a run in the study. An interrupted trial stays open."""
        states = self.optuna.trial.TrialState
        if outcome.state not in (DONE, FAILED, PRUNED):
            return
        outcome.value = self._value(outcome)
        if outcome.state == PRUNED:
            self.study.tell(trial, state=states.PRUNED)
        elif outcome.state == FAILED or outcome.value is None:
            self.study.tell(trial, state=states.FAIL)
        else:
            self.study.tell(trial, outcome.value)

    def _value(self, outcome: JobOutcome) -> float | None:
        """The metric of the selected checkpoint, else the best logged value."""
        value = outcome.results.get(self.metric)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        logged = run_files.metric_values(outcome.job.run, self.metric)
        return (max if self.sweep.maximize else min)(logged, default=None)

    def best(self) -> JobOutcome | None:
        """The finished run with the best value."""
        sign = 1.0 if self.sweep.maximize else -1.0
        scored = [
            (sign * outcome.value, outcome)
            for outcome in self.runner.outcomes.values()
            if outcome.state == DONE and outcome.value is not None
        ]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds the lock of the study in ``folder``. Raises ConfigError if another process has it."""
    with lock_file(folder / "study.lock") as lock:
        if lock is None:
            raise ConfigError(f"{folder}: another command runs this search; wait for it or stop it")
        yield


def run_search(search: OptunaSearch) -> bool:
    """Run trials in all slots until there are enough; True if an interrupt ended it early."""
    runner = search.runner
    runner.display.begin(list(runner.outcomes.values()), search.trials)
    with ThreadPoolExecutor(runner.pool.size) as threads:
        work = [threads.submit(search.run_trials) for _ in range(runner.pool.size)]
        interrupted = wait_for_work(runner, work)
    runner.save()
    return interrupted
