"""``itr sync``: uploads offline Weights & Biases runs, each one once."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from itr.command import INTERRUPTED, command
from itr.errors import ConfigError, DataError

ABOUT = """Upload every offline Weights & Biases run below the given folders, several at a time.
What was uploaded is marked and never sent again: repeat the command after an interruption or an
error, or when more runs have finished."""
OFFLINE = "offline-run-*"  # folders that wandb writes
MARK = ".synced"  # appended to the name of an uploaded file, by wandb itself
PROGRAM = (sys.executable, "-m", "wandb", "sync")
ALL_SENT, SOME_FAILED = 0, 1  # exit codes


@dataclass
class OfflineRuns:
    """The offline runs in one folder, oldest first: parts of one training if it was resumed."""

    folder: Path  # the run directory
    waiting: list[Path] = field(default_factory=list)
    sent: list[Path] = field(default_factory=list)
    running: bool = False


def find_offline(paths: Iterable[Path]) -> list[OfflineRuns]:
    """The offline runs in and below ``paths``. Raises DataError for a path that is no folder."""
    from itr.results.runs.run_state import is_running

    found: dict[Path, OfflineRuns] = {}
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; pass run directories or a folder of runs")
        for name in sorted(_folders_named_wandb(path)):
            runs = sorted(one for one in name.glob(OFFLINE) if one.is_dir())
            if runs and name.absolute() not in found:
                each = OfflineRuns(name.parent, running=is_running(name.parent))
                for one in runs:
                    (each.sent if was_sent(one) else each.waiting).append(one)
                found[name.absolute()] = each
    return list(found.values())


def _folders_named_wandb(path: Path) -> Iterable[Path]:
    for folder, inside, _ in os.walk(path):
        if "wandb" in inside:
            yield Path(folder) / "wandb"
        inside[:] = [name for name in inside if name not in ("wandb", "checkpoints")]


def was_sent(run: Path) -> bool:
    """Whether wandb has marked ``run`` as uploaded."""
    files = [file for file in run.glob("*.wandb")]
    return bool(files) and all(file.with_name(file.name + MARK).exists() for file in files)


@command
def main(arguments: Sequence[str]) -> int:
    """Upload what waits; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: expected at least 1")
    if not options.timeout > 0:
        raise ConfigError(f"--timeout {options.timeout:g}: expected minutes, more than 0")
    from itr.terminal import PlainConsole

    console = PlainConsole()
    found = find_offline(options.runs)
    ready = [each for each in found if each.waiting and not each.running]
    busy = [each for each in found if each.waiting and each.running]
    waiting, sent = sum(len(e.waiting) for e in ready), sum(len(e.sent) for e in found)
    console.print(f"{waiting} offline runs to upload, {sent} uploaded before")
    for each in busy:
        console.print(f"{each.folder}: left for later, a job is training in it", soft_wrap=True)
    if options.dry:
        for each in ready:
            for run in each.waiting:
                console.print(str(run), soft_wrap=True)
        return ALL_SENT
    if not ready:
        return ALL_SENT
    _require_key()
    target = [*(("-p", options.project) if options.project else ())]
    target += ["-e", options.entity] if options.entity else []
    return _upload(ready, target, options.jobs, options.timeout, console.print)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="itr sync", description=ABOUT)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or folders of runs"
    )
    parser.add_argument(
        "--jobs", type=int, default=4, metavar="N", help="uploads at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="end an upload that takes longer, and go on with the next (default: %(default)g)",
    )
    parser.add_argument("--dry", action="store_true", help="only list what would be uploaded")
    parser.add_argument("--project", help="another W&B project than the runs name")
    parser.add_argument("--entity", help="another W&B user or team than the runs name")
    return parser


def _require_key() -> None:
    import wandb

    from itr.results.trackers.wandb_backend import has_key

    if not has_key(wandb):
        raise ConfigError(
            "itr sync: no Weights & Biases key is configured; run `wandb login` (or set "
            "WANDB_API_KEY). --dry lists what would be uploaded"
        )


def _upload(
    ready: Sequence[OfflineRuns],
    target: Sequence[str],
    jobs: int,
    minutes: float,
    say: Callable[..., None],
) -> int:
    failed = total = 0
    pool = ThreadPoolExecutor(jobs)
    try:
        tasks = {pool.submit(_upload_one, each, target, minutes): each for each in ready}
        for task in as_completed(tasks):
            for run, reason in task.result().items():
                total += 1
                failed += bool(reason)
                say(f"{run}: {reason or 'uploaded'}", soft_wrap=True)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        say("interrupted; repeat the command to continue")
        return INTERRUPTED
    pool.shutdown()
    say(f"{total - failed} uploaded, {failed} failed" + ("; repeat the command" if failed else ""))
    return SOME_FAILED if failed else ALL_SENT


def _upload_one(runs: OfflineRuns, target: Sequence[str], minutes: float) -> Mapping[Path, str]:
    """Upload the parts of one training in order. Run -> why it failed; empty: it did not.

    After a failure the later parts wait: the service would lack what comes before them.
    """
    told: dict[Path, str] = {}
    for run in runs.waiting:
        try:
            ended = subprocess.run(
                [*PROGRAM, *target, str(run)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60 * minutes,
            )
        except subprocess.TimeoutExpired:
            told[run] = f"not uploaded (no end after {minutes:g} minutes; pass a longer --timeout)"
            break
        told[run] = ""
        if not was_sent(run):
            lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
            told[run] = f"not uploaded ({lines[-1].strip() if lines else 'no message'})"
            break
    return told
