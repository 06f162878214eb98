"""The command line of ``itr sweep``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from itr.command import INTERRUPTED, USER_ERROR, command
from itr.errors import ConfigError
from itr.instantiate import nearest
from itr.jobs import run_dir
from itr.sweep import run_files
from itr.sweep.grid import Job, corner_choices, grid_jobs, make_job
from itr.sweep.optuna_search import Search, run_search
from itr.sweep.process_pool import Pool, make_slots, visible_gpus
from itr.sweep.progress import Board
from itr.sweep.runner import Runner, run_grid
from itr.sweep.seed_table import DONE, FAILED, make_rows, sorted_rows, table
from itr.sweep.spec import Sweep, read_sweep

ALL_DONE, SOME_FAILED = 0, 1  # exit codes, beside those of `itr.command`
DEFAULT_METRIC = "val/rsum"
HELP = """Run a sweep file, the same that `wandb sweep` reads.

  itr sweep FILE [option=value ...] [key=value ...]

  jobs=N           jobs at a time (default: as many as GPUs serve, else 1)
  retries=1        how often a failed job is tried again
  dry=true         only print the jobs, their state and their commands
  out=DIR          runs go to DIR/<run>, the table to DIR/sweeps/<sweep> (default: runs)
  method=optuna    search instead of a grid; trials=N of them in all
  pruner=median    of a search: median | hyperband | none

Every other key=value goes to train.py and wins over the file; key=a,b,c runs all three.
Finished runs are skipped, unfinished ones go on, so the same command goes on after anything.
Exit code: 0 all done, 1 some jobs failed, 2 a mistake to mend, 130 interrupted."""


@dataclass
class Options:
    """What is said on the command line."""

    file: Path
    jobs: int | None = None
    retries: int = 1
    dry: bool = False
    out: Path = run_dir.ROOT
    method: str = "grid"
    trials: int | None = None
    pruner: str | None = None
    overrides: list[str] = field(default_factory=list)


def parse(arguments: Sequence[str]) -> Options:
    """The command line. Raises ConfigError that says what to type."""
    files = [word for word in arguments if "=" not in word]
    if len(files) != 1 or files[0].startswith("-"):
        found = f"found {' '.join(files)}" if files else "found none"
        raise ConfigError(
            f"expected one sweep file, {found}; e.g. itr sweep sweeps/methods_losses.yaml jobs=2"
        )
    options = Options(Path(files[0]))
    for word in arguments:
        key, separator, value = word.partition("=")
        if not separator:
            continue
        if key in ("jobs", "retries", "trials"):
            if not value.isdecimal() or (int(value) == 0 and key != "retries"):
                raise ConfigError(f"{key}: '{value}' is no whole number above 0")
            setattr(options, key, int(value))
        elif key == "dry":
            if value.lower() not in ("true", "false"):
                raise ConfigError(f"dry: '{value}'; expected true or false")
            options.dry = value.lower() == "true"
        elif key == "out":
            options.out = Path(value)
        elif key in ("method", "pruner"):
            known = ("grid", "optuna") if key == "method" else ("median", "hyperband", "none")
            if value not in known:
                raise ConfigError(
                    f"{key}: '{value}' is unknown{nearest(value, known)} ({', '.join(known)})"
                )
            setattr(options, key, value)
        else:
            options.overrides.append(word)
    if options.method == "grid" and (options.trials or options.pruner):
        raise ConfigError("trials and pruner belong to a search; type method=optuna")
    return options


@command
def main(arguments: Sequence[str]) -> int:
    """Run what ``arguments`` say; returns the exit code."""
    console = Console()
    if not arguments or "--help" in arguments or "-h" in arguments:
        console.print(HELP, markup=False, highlight=False)
        return ALL_DONE if arguments else USER_ERROR
    return _run(parse(arguments), console)


def _run(options: Options, console: Console) -> int:
    sweep = read_sweep(options.file).replace(options.overrides)
    folder = options.out / "sweeps" / sweep.name
    if options.method == "optuna":
        return _search(options, sweep, folder, console)
    jobs = grid_jobs(sweep, options.out)
    if options.dry:
        _list(jobs, Pool(sweep.program, [], folder), console)
        return ALL_DONE
    runner = _runner(options, sweep, folder, jobs, console)
    console.print(f"{sweep.name}: {len(jobs)} jobs", highlight=False)
    interrupted = run_grid(runner, jobs)
    console.print(table(sweep, make_rows(runner.outcomes.values()), sweep.name))
    return conclude(runner, interrupted)


def _search(options: Options, sweep: Sweep, folder: Path, console: Console) -> int:
    if options.trials is None:
        raise ConfigError("method=optuna: how many trials in all? type trials=30")
    metric = sweep.metric or DEFAULT_METRIC
    tried = [make_job(sweep, choices.items(), options.out) for choices in corner_choices(sweep)]
    if options.dry:
        raise ConfigError("dry=true: a search decides on its jobs as it goes")
    runner = _runner(options, sweep, folder, tried, console)
    search = Search(runner, sweep, options.out, metric, options.trials, options.pruner)
    console.print(f"{sweep.name}: {options.trials} trials for the best {metric}", highlight=False)
    try:
        interrupted = run_search(search)
    finally:
        search.close()
    outcomes = list(runner.outcomes.values())
    rows = sorted_rows(outcomes, sweep.maximize)
    console.print(table(sweep, rows, sweep.name, searched=True))
    best = search.best()
    if best is not None:
        command = shlex.join(["python", sweep.program, *best.job.arguments])
        runner.board.say(f"best {metric} {best.value:.4g}: {command}")
    return conclude(runner, interrupted)


def _runner(
    options: Options, sweep: Sweep, folder: Path, jobs: Sequence[Job], console: Console
) -> Runner:
    width = max(job.devices for job in jobs)
    gpus = [] if all(job.on_cpu for job in jobs) else visible_gpus()
    slots, told = make_slots(options.jobs, width, gpus)
    console.print(told, highlight=False)
    board = Board(console, len(slots), sweep.metric or DEFAULT_METRIC)
    return Runner(sweep, Pool(sweep.program, slots, folder), folder, options.retries, board)


def conclude(runner: Runner, interrupted: bool) -> int:
    """Say how it ended and where the table is; the exit code."""
    outcomes = list(runner.outcomes.values())
    failed = sum(outcome.state == FAILED for outcome in outcomes)
    done = sum(outcome.state == DONE for outcome in outcomes)
    runner.board.say(f"{done} of {len(outcomes)} jobs done; table: {runner.folder}/table.md")
    if interrupted:
        runner.board.say("interrupted; the same command goes on", "yellow")
        return INTERRUPTED
    if failed:
        runner.board.say(
            f"{failed} jobs failed, their logs are in {runner.folder}/jobs; the same command tries "
            "them again",
            "red",
        )
        return SOME_FAILED
    return ALL_DONE


def _list(jobs: Sequence[Job], pool: Pool, console: Console) -> None:
    for job in jobs:
        state = "missing"
        if job.run.exists():
            state = "unfinished" if run_files.results_of(job.run) is None else "done"
        command = shlex.join(["python", *pool.command(job)[1:]])
        console.print(f"{state}: {command}", markup=False, highlight=False, soft_wrap=True)
