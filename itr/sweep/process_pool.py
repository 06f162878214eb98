"""A pool of device slots, each of which runs one job at a time in a process tree of its own.

A job holds a lock as long as it lives, one for its run directory: a runner that follows one which
was killed, a second one beside it, or another sweep that shares the job sees that it still runs,
and neither starts it twice nor ends it. A job that is trained there by hand is waited for, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from itr.compose import CONF
from itr.errors import ConfigError
from itr.jobs.lock import LOCK
from itr.sweep.grid import Job
from itr.sweep.spec import RESUME

NO_THREADS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}


@dataclass(frozen=True)
class Slot:
    """A place for one job. ``gpus`` is its CUDA_VISIBLE_DEVICES, None where no GPU is used."""

    index: int
    gpus: str | None = None


@dataclass
class Running:
    """A job under way; ``process`` is None if another runner started it."""

    job: Job
    slot: Slot | None
    process: subprocess.Popen[bytes] | None
    started: float


@dataclass(frozen=True)
class Ended:
    """A job whose process has ended: ``code`` is its exit code (None: of another runner's)."""

    job: Job
    code: int | None
    seconds: float


def make_slots(jobs: int | None, width: int, gpus: Sequence[str]) -> tuple[list[Slot], str]:
    """Slots for ``jobs`` jobs at once (None: as many as there are GPUs for, without GPUs one), each
    of which uses ``width`` of ``gpus``, and a sentence about them.

    Raises ConfigError if there are too few GPUs for one job.
    """
    if not gpus:
        count = jobs or 1
        return [Slot(index) for index in range(count)], f"{count} at a time on the CPU"
    if width > len(gpus):
        raise ConfigError(
            f"devices={width}: a job of this sweep wants {width} GPUs, {len(gpus)} visible; "
            "type devices=1, or device=cpu"
        )
    places = len(gpus) // width
    count = jobs or places
    firsts = [index % places * width for index in range(count)]
    slots = [Slot(i, ",".join(gpus[first : first + width])) for i, first in enumerate(firsts)]
    shared = f", up to {-(-count // places)} jobs to a GPU" if count > places else ""
    return slots, f"{count} at a time on {len(gpus)} GPUs, {width} each{shared}"


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None and count:
        return [word.strip() for word in named.split(",")][:count]
    return [str(index) for index in range(count)]


class Pool:
    """Processes of ``program`` in ``slots``; logs go to ``folder``/jobs."""

    def __init__(self, program: str, slots: list[Slot], folder: Path):
        own = CONF.parent / Path(program).name  # a sweep may be started from any folder
        self.program = program if Path(program).is_file() else str(own)
        self.slots, self.folder = slots, folder / "jobs"
        self.running: dict[Path, Running] = {}

    def log_of(self, job: Job) -> Path:
        """Where the output of ``job`` goes."""
        return self.folder / f"{job.run.name}.log"

    def command(self, job: Job) -> list[str]:
        """What is run for ``job``."""
        quoted = str(job.run).replace("\\", "\\\\").replace('"', '\\"')
        return [sys.executable, self.program, *job.arguments, f'out="{quoted}"', RESUME]

    def free(self) -> Slot | None:
        """A slot without a job."""
        taken = [running.slot for running in self.running.values()]
        if len(taken) >= len(self.slots):
            return None
        return next((slot for slot in self.slots if slot not in taken), None)

    def start(self, job: Job, slot: Slot) -> bool:
        """Start ``job`` in ``slot``. False: it runs already, started by another runner; then it is
        waited for like the others."""
        lock = take_job(job.run)
        if lock is None:
            self.running[job.run] = Running(job, slot, None, time.monotonic())
            return False
        command = self.command(job)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
        tags = os.environ.get("WANDB_TAGS"), f"sweep:{self.folder.parent.name}"
        environment["WANDB_TAGS"] = ",".join(filter(None, tags))  # the dashboard's filter
        if slot.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpus
        if not NO_THREADS & environment.keys():
            environment["OMP_NUM_THREADS"] = str(
                max(1, (os.cpu_count() or 1) // len(self.slots) // job.devices)
            )
        try:
            with open(self.log_of(job), "ab") as log:
                log.write(f"$ {shlex.join(command)}\n".encode())
                log.flush()
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is ours to pass on
                    pass_fds=(lock,),
                )
            os.truncate(lock, 0)
            os.pwrite(lock, json.dumps({"pid": process.pid}).encode(), 0)
        finally:
            os.close(lock)  # the job's own copy holds the lock from now on
        self.running[job.run] = Running(job, slot, process, time.monotonic())
        return True

    def poll(self) -> list[Ended]:
        """The jobs that have ended since the last call."""
        ended = []
        for path, running in list(self.running.items()):
            if running.process is None:
                lock = take_job(path)
                if lock is None:
                    continue
                os.close(lock)
                code = None
            else:
                code = running.process.poll()
                if code is None:
                    continue
            del self.running[path]
            ended.append(Ended(running.job, code, time.monotonic() - running.started))
        return ended

    def tell(self, job: Job, number: signal.Signals) -> None:
        """Send ``job`` a signal: SIGTERM to its process, which saves and ends its own workers,
        SIGKILL to all of them. Another runner's job is left alone."""
        running = self.running.get(job.run)
        if running is None or running.process is None or running.process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                for process in _session(running.process.pid):
                    os.kill(process, number)
            else:
                running.process.send_signal(number)

    def owns(self, job: Job) -> bool:
        """Whether ``job`` is under way and was started here."""
        running = self.running.get(job.run)
        return running is not None and running.process is not None

    def tell_all(self, number: signal.Signals) -> None:
        """`tell` every job."""
        for running in list(self.running.values()):
            self.tell(running.job, number)

    def others(self) -> list[tuple[Job, int | None]]:
        """Jobs under way that another runner started, with the process id they told."""
        return [
            (running.job, _told_pid(lock_of(running.job.run)))
            for running in self.running.values()
            if running.process is None
        ]


def lock_of(run: Path) -> Path:
    """The file that whichever sweep runs the job of directory ``run`` holds a lock on."""
    return run.parent / "sweeps" / ".locks" / f"{run.name}.lock"


def take_job(run: Path) -> int | None:
    """`take_lock` of the job of directory ``run``; None, too, while it is trained there by hand."""
    path = lock_of(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = take_lock(path)
    if descriptor is None or not (run / LOCK).exists():
        return descriptor
    trained = take_lock(run / LOCK)
    if trained is None:
        os.close(descriptor)
        return None
    os.close(trained)
    return descriptor


def take_lock(path: Path) -> int | None:
    """An open descriptor that holds the lock on ``path``, None if somebody else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _session(leader: int) -> list[int]:
    """The processes of the session that ``leader`` began; workers are in groups of their own."""
    found = [leader]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != leader and os.getsid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


def _told_pid(path: Path) -> int | None:
    try:
        found: Any = json.loads(path.read_text())
        return int(found["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
