"""Several processes for one job: started here by torch's elastic launcher, or from outside.

The entry point composes once; what it composed is handed to workers that this very process starts,
so that multirun, sweepers and launchers stay as they are and get the job's results. Under torchrun
(RANK and WORLD_SIZE are set) every process is a worker already.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from itr import parallel
from itr.errors import ConfigError, RankLost, Stopped, TrainingError, UserError
from itr.training.faults.heartbeat import HEARTBEAT_DIR, read_heartbeats
from itr.training.signals import PREEMPTION, StopRequest

Job = Callable[[dict[str, Any]], dict[str, Any]]
FAILED, INTERRUPTED = 2, 130  # exit codes of a worker that has told its error; that was told to go
PATIENCE = 5.0  # seconds between a second SIGINT and SIGKILL


def launch(job: Job, values: dict[str, Any], count: int, nodes: int, cuda: bool) -> dict[str, Any]:
    """Run ``job(values)`` in ``count`` processes on this machine; what rank 0 returns.

    Raises what a worker raised (a UserError, Stopped), ConfigError where there are not so many
    GPUs, and TrainingError that names a worker which died.
    """
    if nodes > 1:
        raise ConfigError(
            f"nodes={nodes}: start one launcher on each machine, which finds the others: torchrun "
            f"--nnodes={nodes} --nproc-per-node={count} --rdzv-backend=c10d "
            "--rdzv-endpoint=FIRST_HOST:29500 train.py ..., or let Slurm do it (-m "
            "hydra/launcher=slurm)"
        )
    if cuda and torch.cuda.device_count() < count:
        raise ConfigError(
            f"devices={count}: this machine shows {torch.cuda.device_count()} GPUs; type "
            f"devices={torch.cuda.device_count()}, or device=cpu"
        )
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="itr-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            signals_to_handle="SIGHUP",  # the others are passed on, and workers save themselves
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        teller = Teller()
        with StopRequest(forward=teller) as stop, teller:
            try:
                returned = elastic_launch(config, _work)(job, values, folder)
            except ChildFailedError as error:
                raise root_cause(error, Path(folder), stop.number) from error
    outcome = returned[0]
    if isinstance(outcome, Stopped):
        raise outcome
    return outcome


class Teller:
    """Passes signals on to the workers. One that waits for another in a collective cannot listen:
    `PATIENCE` seconds after a second SIGINT the workers are killed. A context manager."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.killer = threading.Timer(PATIENCE, self.tell, (signal.SIGKILL,))
        self.killer.daemon = True

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: Any) -> None:
        self.killer.cancel()

    def __call__(self, number: int) -> None:
        """Pass ``number`` on, and count it."""
        self.tell(number)
        self.interrupts += number == signal.SIGINT
        if self.interrupts == 2 and number == signal.SIGINT:
            self.killer.start()

    def tell(self, number: int) -> None:
        """Send every worker the signal ``number``."""
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)


def _work(job: Job, values: dict[str, Any], folder: str) -> dict[str, Any] | Stopped:
    """What each process does; an error is left in ``folder`` for the launcher."""
    os.setpgrp()  # Ctrl-C on a terminal reaches the launcher, which passes it on once
    os.environ[HEARTBEAT_DIR] = folder
    try:
        outcome: dict[str, Any] | Stopped = job(values)
    except Stopped as stopped:
        outcome = stopped
    except UserError as error:
        note = Path(folder) / f"error-{os.environ['RANK']}"
        note.write_bytes(pickle.dumps(error))
        _go(FAILED)
    except KeyboardInterrupt:  # or torch's wrapper would call it a success
        _go(INTERRUPTED)
    parallel.shutdown()
    return outcome


def _go(code: int) -> NoReturn:
    """End this process now: an orderly end would wait for ranks that may not answer."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def root_cause(error: ChildFailedError, folder: Path, stopped_by: int) -> BaseException:
    """The error that a worker told (what it met itself, before what the others met of it); else
    that it was stopped by a signal; else which one died of what, and how far it had come."""
    told = [_read(note) for note in sorted(folder.glob("error-*"))]
    own = [one for one in told if not isinstance(one, RankLost)]
    if own:
        return own[0]
    if stopped_by == signal.SIGINT:
        return KeyboardInterrupt()
    if stopped_by in PREEMPTION:  # before there was anything to save
        return Stopped("stopped by a signal before the first update", preempted=True)
    killed = [(r, f) for r, f in sorted(error.failures.items()) if f.exitcode < 0]
    rank, failure = killed[0] if killed else error.get_first_failure()
    if failure.exitcode < 0:
        at = read_heartbeats(folder).get(rank)
        name = signal.Signals(-failure.exitcode).name
        memory = " (often: the machine has no memory left)" if name == "SIGKILL" else ""
        where = f"after update {at.updates}" if at else "before the first update"
        return TrainingError(
            f"rank {rank} (process {failure.pid}) died of {name}{memory} {where}; the other ranks "
            "were stopped. Go on with resume=auto"
        )
    if told:
        return told[0]
    return TrainingError(
        f"rank {rank} failed with exit code {failure.exitcode}; its traceback stands above"
    )


def _read(note: Path) -> UserError:
    told = pickle.loads(note.read_bytes())  # written by our own worker, a moment ago
    assert isinstance(told, UserError)
    return told
