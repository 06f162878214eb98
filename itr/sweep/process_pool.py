"""Runs jobs in a fixed number of device slots, each job as a process tree of its own.

A job's process inherits a lock on a file named after its run directory and holds it until it ends.
So a second runner, a runner that follows a killed one, or another sweep with the same job waits for
that job instead of starting it twice. A run trained by hand in that directory is waited for, too.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from filelock import lock_descriptor

from itr.errors import ConfigError
from itr.results.run_folder import LOCK
from itr.sweep.grid import SweepJob
from itr.sweep.spec import RESUME

POLL = 0.2  # seconds between two checks of a process
GRACE = 300.0  # seconds that a job may take to save after SIGTERM
THREAD_VARIABLES = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}

Slot = str | None  # room for one job: its CUDA_VISIBLE_DEVICES, None without GPUs


def make_slots(jobs: int | None, width: int, gpus: Sequence[str]) -> tuple[list[Slot], str]:
    """Slots for ``jobs`` concurrent jobs of ``width`` GPUs each, and a sentence that says so.

    ``jobs=None``: as many as the GPUs allow; one without GPUs. Raises ConfigError if there are too
    few GPUs for one job.
    """
    if not gpus:
        count = jobs or 1
        return [None] * count, f"{count} at a time on the CPU"
    if width > len(gpus):
        raise ConfigError(
            f"devices={width}: a job of this sweep needs {width} GPUs, {len(gpus)} visible; "
            "pass devices=1 or device=cpu"
        )
    groups = [",".join(gpus[i * width : (i + 1) * width]) for i in range(len(gpus) // width)]
    count = jobs or len(groups)
    shared = f", up to {-(-count // len(groups))} jobs per GPU" if count > len(groups) else ""
    slots: list[Slot] = [groups[index % len(groups)] for index in range(count)]
    return slots, f"{count} at a time on {len(gpus)} GPUs, {width} each{shared}"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None and count:
        return [word.strip() for word in names.split(",")][:count]
    return [str(index) for index in range(count)]


class ProcessPool:
    """Runs ``program`` in ``slots``, called from one thread per slot. Logs go to ``folder``/jobs.

    ``stopping`` is set by `stop`; no process starts afterwards.
    """

    def __init__(self, program: str, slots: Sequence[Slot], folder: Path):
        # A sweep may be started from any folder, and an installed package has no train.py.
        self.program = [program] if Path(program).is_file() else ["-m", "itr", "train"]
        self.folder = folder / "jobs"
        self.size = len(slots)
        self.stopping = threading.Event()
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._starting = threading.Lock()

    def log_path(self, job: SweepJob) -> Path:
        """The file that receives the output of ``job``."""
        return self.folder / f"{job.run.name}.log"

    def command(self, job: SweepJob) -> list[str]:
        """The command line of ``job``."""
        quoted = str(job.run).replace("\\", "\\\\").replace('"', '\\"')
        return [sys.executable, *self.program, *job.arguments, f'out="{quoted}"', RESUME]

    @contextlib.contextmanager
    def slot(self) -> Iterator[Slot]:
        """Occupies a free slot."""
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)

    def run(
        self, job: SweepJob, slot: Slot, lock: int, hopeless: Callable[[], bool] = lambda: False
    ) -> int | None:
        """Run ``job`` to its end; returns its exit code, or None if the pool is stopping.

        ``lock`` comes from `lock_job`. Once ``hopeless()`` is true the job is told to save and end.
        """
        with self._starting:  # or `stop` could miss a process that is just being created
            if self.stopping.is_set():
                return None
            process = self._processes[job.run] = self._start(job, slot, lock)
        try:
            return _wait(process, hopeless)
        finally:
            _send(process, signal.SIGTERM)  # still running only if an error was raised here
            del self._processes[job.run]

    def _start(self, job: SweepJob, slot: Slot, lock: int) -> subprocess.Popen[bytes]:
        command = self.command(job)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
        tags = os.environ.get("WANDB_TAGS"), f"sweep:{self.folder.parent.name}"
        environment["WANDB_TAGS"] = ",".join(filter(None, tags))  # a filter for the dashboard
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        if not THREAD_VARIABLES & environment.keys():
            threads = (os.cpu_count() or 1) // self.size // job.devices
            environment["OMP_NUM_THREADS"] = str(max(1, threads))
        with open(self.log_path(job), "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches only the runner, which forwards it
                pass_fds=(lock,),
            )

    def stop(self, kill: bool = False) -> int:
        """Tell all jobs to save and end, or kill them; returns their number."""
        with self._starting:
            self.stopping.set()
            processes = list(self._processes.values())
        for process in processes:
            _send(process, signal.SIGKILL if kill else signal.SIGTERM)
        return len(processes)


def lock_path(run: Path) -> Path:
    """The file that the process of run directory ``run`` holds a lock on."""
    return run.parent / "sweeps" / ".locks" / f"{run.name}.lock"


@contextlib.contextmanager
def lock_job(run: Path) -> Iterator[int | None]:
    """An open file descriptor that holds the lock of ``run`` until every copy of it is closed.

    None if another runner's job, or a run started by hand, is under way in ``run``.
    """
    path = lock_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(lock_file(path))
        if lock is not None and (run / LOCK).exists():
            with lock_file(run / LOCK) as by_hand:
                if by_hand is None:
                    lock = None
        yield lock


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[int | None]:
    """An open file descriptor that holds the lock on ``path``; None if another process has it."""
    # Not filelock.FileLock: a child process must be able to inherit the descriptor.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor if lock_descriptor(descriptor, blocking=False) else None
    finally:
        os.close(descriptor)


def _wait(process: subprocess.Popen[bytes], hopeless: Callable[[], bool]) -> int:
    deadline = None
    while (code := process.poll()) is None:
        if deadline is None and hopeless():
            deadline = time.monotonic() + GRACE
            _send(process, signal.SIGTERM)
        elif deadline is not None and time.monotonic() > deadline:
            _send(process, signal.SIGKILL)
        time.sleep(POLL)
    return code


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send SIGKILL to all processes of a session; other signals only to ``process`` itself."""
    if process.poll() is not None:
        return
    targets = _session(process.pid) if number == signal.SIGKILL else [process.pid]
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _session(leader: int) -> list[int]:
    """The processes of a session. Its workers have process groups of their own."""
    members = [leader]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != leader and os.getsid(int(entry.name)) == leader:
                members.append(int(entry.name))
    return members
