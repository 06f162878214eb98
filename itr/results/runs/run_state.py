"""What a run directory says of its run, read from its files alone and without torch.

A folder that is damaged is described as such; nothing here raises for it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from itr.errors import DataError
from itr.files import parse_json, parse_yaml
from itr.results.results_file import RESULTS, read_results
from itr.results.run_folder import CONFIG, FAILED, LOCK, LOG, PLANNED, STARTED, STOPPED, TAGS
from itr.results.trackers.metrics_file import METRICS

RUNNING, FINISHED, PREEMPTED, FAILED_STATE, KILLED, DAMAGED = (
    "running",
    "finished",
    "preempted",
    "failed",
    "killed",
    "damaged",
)
SKIPPED = ("wandb", "checkpoints", "archive")  # folders in which no run is looked for
SELECTED_BY = ("rsum", "accuracy")  # metrics of which a run has one, in per cent
TAIL = 256 * 1024  # bytes read from the end of a log
RESUME = "resume=auto goes on from the last checkpoint"


@dataclass(frozen=True)
class RunState:
    """One run. ``val`` is the best value of ``metric`` on the split of selection."""

    name: str
    folder: Path
    state: str
    reason: str = ""  # why it did not finish, or what is damaged
    model: str = ""
    data: str = ""
    task: str = ""
    loss: str = ""
    seed: int | None = None
    updates: int | None = None
    planned: int | None = None
    metric: str = ""
    val: float | None = None
    test: float | None = None
    select_on: str = ""
    changed: float = 0.0  # seconds since 1970
    size: int = 0  # bytes
    tags: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """All fields, JSON-serializable."""
        return {**dataclasses.asdict(self), "folder": str(self.folder), "tags": list(self.tags)}


def find_runs(paths: Iterable[Path]) -> list[RunState]:
    """The runs in and below ``paths``, named by their path below a single one.

    Raises DataError for a path that is no folder.
    """
    found: dict[Path, RunState] = {}
    several = len(paths := list(paths)) > 1
    for path in paths:
        if not path.is_dir():
            raise DataError(
                f"{path}: no such folder; pass a folder of runs (python train.py makes runs/)"
            )
        for folder in _run_folders(path):
            below = folder.relative_to(path)
            name = str(folder if several or below == Path() else below)
            found.setdefault(folder.absolute(), read_run(folder, name))
    return list(found.values())


def _run_folders(path: Path) -> Iterator[Path]:
    for folder, inside, files in os.walk(path):
        inside[:] = sorted(name for name in inside if name not in SKIPPED and name[0] != ".")
        if CONFIG in files and (METRICS in files or LOG in files or LOCK in files):
            yield Path(folder)


def read_run(folder: Path, name: str | None = None) -> RunState:
    """The state of the run in ``folder``; ``name`` is how it is called in lists."""
    size, changed = _measure(folder)
    facts: dict[str, Any] = {"changed": changed, "size": size, "tags": tags(folder)}
    run = RunState(name or folder.name, folder, KILLED, **facts)
    try:
        if (folder / RESULTS).is_file():
            results = read_results(folder)
            return dataclasses.replace(run, state=FINISHED, **_of_results(results))
        config = parse_yaml((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} is empty")
    except (DataError, ValueError, OSError) as error:
        return dataclasses.replace(run, state=DAMAGED, reason=str(error))
    log = _Log.read(folder / LOG)
    updates, metric, best = _of_metrics(folder / METRICS, str(config.get("select_on") or "val"))
    state, reason = (RUNNING, "") if is_running(folder) else (log.state, log.reason)
    return dataclasses.replace(
        run,
        state=state,
        reason=reason,
        updates=updates,
        planned=log.planned,
        metric=metric,
        val=best,
        **_of_config(config),
    )


def tags(folder: Path) -> tuple[str, ...]:
    """The tags of a run."""
    try:
        return tuple((folder / TAGS).read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return ()


def is_running(folder: Path) -> bool:
    """Whether a process of this or another machine holds the lock of the run."""
    try:
        with open(folder / LOCK, "rb") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:  # there is none, or the file system has no locks
        return False


def _measure(folder: Path) -> tuple[int, float]:
    """Bytes of all files, and when the newest was changed."""
    size, changed, folders = 0, 0.0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                        continue
                    stat = entry.stat(follow_symlinks=False)
                    size, changed = size + stat.st_size, max(changed, stat.st_mtime)
        except OSError:  # it was deleted a moment ago
            continue
    return size, changed


def _of_results(results: Mapping[str, Any]) -> dict[str, Any]:
    split = str(results.get("select_on") or "val")
    metric = next((m for m in SELECTED_BY if results.get(f"test/{m}") is not None), "")
    return {
        **{key: str(results.get(key) or "") for key in ("model", "data", "task", "loss")},
        "seed": results.get("seed"),
        "updates": results.get("updates"),
        "planned": results.get("updates"),
        "metric": metric,
        "val": results.get(f"{split}/{metric}"),
        "test": results.get(f"test/{metric}"),
        "select_on": split,
    }


def _of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: config.get(key) for key in ("model", "data", "task", "loss")}
    return {
        **{k: str(v.get("name") or "") if isinstance(v, dict) else "" for k, v in named.items()},
        "seed": config.get("seed"),
        "select_on": str(config.get("select_on") or ""),
    }


def _of_metrics(path: Path, split: str) -> tuple[int | None, str, float | None]:
    """The last update that was logged, and the best value of the metric of selection."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return None, "", None
    best: dict[str, float] = {}
    updates = None
    for number, line in enumerate(lines):
        if number < len(lines) - 2 and f'"{split}/'.encode() not in line:
            continue  # training values; only the last complete line says how far it is
        try:
            values = parse_json(line)
            updates = max(updates or 0, int(values["step"]))
            for metric in SELECTED_BY:
                value = values.get(f"{split}/{metric}")
                if isinstance(value, int | float):
                    best[metric] = max(best.get(metric, value), value)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # half a line
    metric = next((m for m in SELECTED_BY if m in best), "")
    return updates, metric, best.get(metric)


@dataclass(frozen=True)
class _Log:
    """How the last start of a run ended, as its log says."""

    state: str = KILLED
    reason: str = f"it ended without a word, as a killed process does; {RESUME}"
    planned: int | None = None

    @classmethod
    def read(cls, path: Path) -> _Log:
        try:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return cls()
        if numbers := re.findall(rf"{PLANNED}(\d+)|update \d+ of (\d+)", text):
            planned = int("".join(numbers[-1]))
        else:
            planned = None
        last = text[max(0, text.rfind(STARTED)) :]
        if FAILED in last:
            reason = last[last.rfind(FAILED) + len(FAILED) :].splitlines()[0]
            return cls(FAILED_STATE, reason, planned)
        if STOPPED in last:
            reason = last[last.rfind(STOPPED) :].splitlines()[0]
            return cls(PREEMPTED, reason, planned)
        return cls(planned=planned)
