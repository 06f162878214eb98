"""Runs one job in several local processes through torch's elastic launcher.

The entry point composes the configuration once and passes it to workers started by this process.
Hydra's multirun, sweepers and launchers therefore work as usual and receive the job's results.
Under torchrun (RANK and WORLD_SIZE are set) every process already is a worker.
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
from itr.training.signals import BEFORE_TRAINING, PREEMPTION, StopRequest

Job = Callable[[dict[str, Any]], dict[str, Any]]
FAILED, INTERRUPTED = 2, 130  # exit codes of a worker: it stored its error; it was interrupted
# Not the faster forkserver: a signal to the process group would kill the server as well.
START_METHOD = "spawn"
KILL_AFTER = 5.0  # seconds between a second SIGINT and SIGKILL


def launch(job: Job, values: dict[str, Any], count: int, nodes: int, cuda: bool) -> dict[str, Any]:
    """Run ``job(values)`` in ``count`` processes on this machine; returns the results of rank 0.

    Raises what a worker raised (a UserError, Stopped), ConfigError if there are too few GPUs, and
    TrainingError, naming the rank, if a worker died.
    """
    _check_machine(count, nodes, cuda)
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
            start_method=START_METHOD,
            signals_to_handle="SIGHUP",  # others are forwarded, so that workers can save
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        forwarder = SignalForwarder()
        with StopRequest(forward=forwarder) as stop, forwarder:
            try:
                returned = elastic_launch(config, _work)(job, values, folder)
            except ChildFailedError as error:
                raise root_cause(error, Path(folder), stop.number) from error
    outcome = returned[0]
    if isinstance(outcome, Stopped):
        raise outcome
    return outcome


def _check_machine(count: int, nodes: int, cuda: bool) -> None:
    if nodes > 1:
        raise ConfigError(
            f"nodes={nodes}: this process can only start workers on its own machine. Run a "
            f"launcher on each machine: torchrun --nnodes={nodes} --nproc-per-node={count} "
            "--rdzv-backend=c10d --rdzv-endpoint=FIRST_HOST:29500 train.py ..., or use Slurm (-m "
            "hydra/launcher=slurm)"
        )
    available = torch.cuda.device_count()
    if cuda and available < count:
        raise ConfigError(
            f"devices={count}: {available} GPUs are visible; pass devices={available}, or "
            "device=cpu"
        )


class SignalForwarder:
    """Forwards signals to the workers. A context manager.

    A worker that waits in a collective cannot react, so the workers are killed `KILL_AFTER` seconds
    after a second SIGINT.
    """

    def __init__(self) -> None:
        self.interrupts = 0
        self.killer = threading.Timer(KILL_AFTER, self.send, (signal.SIGKILL,))
        self.killer.daemon = True

    def __enter__(self) -> SignalForwarder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.killer.cancel()

    def __call__(self, number: int) -> None:
        """Forward the signal ``number``."""
        self.send(number)
        self.interrupts += number == signal.SIGINT
        if self.interrupts == 2 and number == signal.SIGINT:
            self.killer.start()

    def send(self, number: int) -> None:
        """Send every worker the signal ``number``."""
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)


def _work(job: Job, values: dict[str, Any], folder: str) -> dict[str, Any] | Stopped:
    """The body of each worker. A UserError is stored in ``folder`` for the launcher."""
    os.setpgrp()  # Ctrl-C on a terminal then reaches the launcher alone, which forwards it once
    os.environ[HEARTBEAT_DIR] = folder
    try:
        outcome: dict[str, Any] | Stopped = job(values)
    except Stopped as stopped:
        outcome = stopped
    except UserError as error:
        file = Path(folder) / f"error-{os.environ['RANK']}"
        file.write_bytes(pickle.dumps(error))
        _exit_now(FAILED)
    except KeyboardInterrupt:  # torch's wrapper would report success
        _exit_now(INTERRUPTED)
    parallel.shutdown()
    return outcome


def _exit_now(code: int) -> NoReturn:
    """End this process immediately: an orderly exit waits for ranks that may not respond."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def root_cause(error: ChildFailedError, folder: Path, stopped_by: int) -> BaseException:
    """The error to raise for failed workers.

    In this order: an error that a worker stored in ``folder``, preferring the original error to
    secondary ones in its peers; the signal ``stopped_by``; the worker that died.
    """
    errors = [_read_error(file) for file in sorted(folder.glob("error-*"))]
    original = [one for one in errors if not isinstance(one, RankLost)]
    if original:
        return original[0]
    if stopped_by == signal.SIGINT:
        return KeyboardInterrupt()
    if stopped_by in PREEMPTION:  # otherwise the workers would have saved and returned
        return Stopped(BEFORE_TRAINING, preempted=True)
    killed = [(r, f) for r, f in sorted(error.failures.items()) if f.exitcode < 0]
    rank, failure = killed[0] if killed else error.get_first_failure()
    if failure.exitcode < 0:
        status = read_heartbeats(folder).get(rank)
        name = signal.Signals(-failure.exitcode).name
        memory = " (often: the machine is out of memory)" if name == "SIGKILL" else ""
        where = f"after update {status.updates}" if status else "before the first update"
        return TrainingError(
            f"rank {rank} (process {failure.pid}) died of {name}{memory} {where}; the other ranks "
            "were stopped. Pass resume=auto to continue from the last checkpoint"
        )
    if errors:
        return errors[0]
    return TrainingError(
        f"rank {rank} failed with exit code {failure.exitcode}; see its traceback above"
    )


def _read_error(file: Path) -> UserError:
    error = pickle.loads(file.read_bytes())  # written by our own worker a moment ago
    assert isinstance(error, UserError)
    return error
