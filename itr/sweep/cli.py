"""The command line of ``itr sweep``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from itr.command import INTERRUPTED, USER_ERROR, command
from itr.errors import ConfigError, nearest
from itr.jobs import run_dir
from itr.sweep import optuna_search, run_files
from itr.sweep.display import SweepDisplay
from itr.sweep.grid import SweepJob, grid_jobs, make_job, one_at_a_time
from itr.sweep.process_pool import ProcessPool, make_slots, visible_gpus
from itr.sweep.runner import Runner, run_grid
from itr.sweep.seed_table import DONE, FAILED, make_rows, sorted_rows, table
from itr.sweep.spec import Sweep, read_sweep
from itr.terminal import OutputConsole

ALL_DONE, SOME_FAILED = 0, 1  # exit codes, beside those of `itr.command`
DEFAULT_METRIC = "val/rsum"
HELP = """Run the jobs of a sweep file. `wandb sweep` reads the same file.

  itr sweep FILE [option=value ...] [key=value ...]

  jobs=N           concurrent jobs (default: as many as the GPUs allow; 1 without GPUs)
  retries=1        how often a failed job is tried again
  dry=true         only print the jobs, their state and their commands
  out=DIR          runs go to DIR/<run>, the table to DIR/sweeps/<sweep> (default: runs)
  method=optuna    search instead of a grid; trials=N in total
  pruner=median    for a search: median | hyperband | none

Every other key=value is passed to train.py and wins over the file; key=a,b,c runs all three.
Finished runs are skipped and unfinished ones resumed: repeat the command to continue a sweep.
Exit code: 0 all done, 1 some jobs failed, 2 invalid input, 130 interrupted."""
CHOICES = {
    "dry": ("true", "false"),
    "method": ("grid", "optuna"),
    "pruner": ("median", "hyperband", "none"),
}
COUNTS = {"jobs": 1, "retries": 0, "trials": 1}  # option -> smallest value


@dataclass
class SweepOptions:
    """The command line of ``itr sweep``."""

    file: Path
    jobs: int | None = None
    retries: int = 1
    dry: bool = False
    out: Path = run_dir.ROOT
    method: str = "grid"
    trials: int | None = None
    pruner: str | None = None
    overrides: list[str] = field(default_factory=list)


def parse(arguments: Sequence[str]) -> SweepOptions:
    """The options in ``arguments``. Raises ConfigError for anything malformed."""
    files = [word for word in arguments if "=" not in word]
    if len(files) != 1 or files[0].startswith("-"):
        raise ConfigError(
            f"expected one sweep file, got {' '.join(files) or 'none'}; e.g. "
            "itr sweep sweeps/methods_losses.yaml jobs=2"
        )
    options = SweepOptions(Path(files[0]))
    for word in arguments:
        key, _, value = word.partition("=")
        if word in files:
            continue
        if key in COUNTS:
            setattr(options, key, _count(key, value))
        elif key in CHOICES:
            choice = _choice(key, value)
            setattr(options, key, choice == "true" if key == "dry" else choice)
        elif key == "out":
            options.out = Path(value)
        else:
            options.overrides.append(word)
    if options.method == "grid" and (options.trials or options.pruner):
        raise ConfigError("trials and pruner are options of a search; also pass method=optuna")
    if options.method == "optuna" and options.trials is None:
        raise ConfigError("method=optuna needs a number of trials; pass trials=30")
    if options.method == "optuna" and options.dry:
        raise ConfigError("dry=true: a search has no list of jobs; pass it without method=optuna")
    return options


def _count(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < COUNTS[key]:
        raise ConfigError(f"{key}={value}: expected a whole number of at least {COUNTS[key]}")
    return int(value)


def _choice(key: str, value: str) -> str:
    value, known = value.lower(), CHOICES[key]
    if value not in known:
        raise ConfigError(f"{key}={value}: expected {' or '.join(known)}{nearest(value, known)}")
    return value


@command
def main(arguments: Sequence[str]) -> int:
    """Run a sweep; returns the exit code."""
    console = OutputConsole()
    if not arguments or "--help" in arguments or "-h" in arguments:
        console.print(HELP)
        return ALL_DONE if arguments else USER_ERROR
    return _run(parse(arguments), console)


def _run(options: SweepOptions, console: OutputConsole) -> int:
    sweep = read_sweep(options.file).replace(options.overrides)
    if options.method == "optuna":
        return _search(options, sweep, console)
    jobs = grid_jobs(sweep, options.out)
    if options.dry:
        _list_jobs(jobs, ProcessPool(sweep.program, [], options.out), console)
        return ALL_DONE
    runner = _runner(options, sweep, jobs, console)
    console.print(f"{sweep.name}: {len(jobs)} jobs")
    interrupted = run_grid(runner, jobs)
    console.print(table(sweep, make_rows(runner.outcomes.values()), sweep.name))
    return _conclude(runner, interrupted)


def _search(options: SweepOptions, sweep: Sweep, console: OutputConsole) -> int:
    metric, trials = sweep.metric or DEFAULT_METRIC, options.trials or 0
    # Composed now so that a mistake in any value is reported before the first trial.
    jobs = [make_job(sweep, choices.items(), options.out) for choices in one_at_a_time(sweep)]
    runner = _runner(options, sweep, jobs, console)
    with optuna_search.exclusive(runner.folder):
        search = optuna_search.OptunaSearch(
            runner, sweep, options.out, metric, trials, options.pruner
        )
        console.print(f"{sweep.name}: {trials} trials for the best {metric}")
        interrupted = optuna_search.run_search(search)
    rows = sorted_rows(list(runner.outcomes.values()), sweep.maximize)
    console.print(table(sweep, rows, sweep.name, searched=True))
    best = search.best()
    if best is not None:
        command = shlex.join(["python", sweep.program, *best.job.arguments])
        runner.display.print(f"best {metric} {best.value:.4g}: {command}")
    return _conclude(runner, interrupted)


def _runner(
    options: SweepOptions, sweep: Sweep, jobs: Sequence[SweepJob], console: OutputConsole
) -> Runner:
    width = max(job.devices for job in jobs)
    gpus = [] if all(job.on_cpu for job in jobs) else visible_gpus()
    slots, summary = make_slots(options.jobs, width, gpus)
    console.print(summary)
    folder = options.out / "sweeps" / sweep.name
    pool = ProcessPool(sweep.program, slots, folder)
    searching = options.method == "optuna"
    return Runner(sweep, pool, folder, options.retries, SweepDisplay(console), searching)


def _conclude(runner: Runner, interrupted: bool) -> int:
    """Print how the sweep ended and where its table is; returns the exit code."""
    states = [outcome.state for outcome in runner.outcomes.values()]
    done, failed = states.count(DONE), states.count(FAILED)
    runner.display.print(f"{done} of {len(states)} jobs done; table: {runner.folder}/table.md")
    if done and _uses_wandb(runner):
        runner.display.print(
            f"dashboard: itr results dashboard ENTITY/PROJECT --sweep {runner.sweep.path}"
        )
    if interrupted:
        runner.display.print("interrupted; repeat the command to continue", "yellow")
        return INTERRUPTED
    if failed:
        runner.display.print(
            f"{failed} of {len(states)} jobs failed; logs: {runner.folder}/jobs; repeat the "
            "command to try them again",
            "red",
        )
        return SOME_FAILED
    return ALL_DONE


def _uses_wandb(runner: Runner) -> bool:
    return any("wandb" in o.job.values.get("tracker", {}) for o in runner.outcomes.values())


def _list_jobs(jobs: Sequence[SweepJob], pool: ProcessPool, console: OutputConsole) -> None:
    for job in jobs:
        state = "missing"
        if job.run.exists():
            state = "unfinished" if run_files.results_of(job.run) is None else "done"
        command = shlex.join(["python", *pool.command(job)[1:]])
        console.print(f"{state}: {command}", soft_wrap=True)
