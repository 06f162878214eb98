"""Real distributed processes, started once for all golden cases that need several ranks."""

from __future__ import annotations

import functools
import io
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests.parity.harness import Case
from tests.processes import CONTEXT

Work = Callable[[Case, int], dict[str, Any]]
PATIENCE = 1800.0  # seconds


def on_ranks(work: Work, case: Case, world: int) -> list[dict[str, Any]]:
    """The results of ``work(case, rank)`` on each of ``world`` ranks.

    Raises RuntimeError with the traceback of the rank that failed first.
    """
    processes, pipes = _processes(world)
    for pipe in pipes:
        pipe.send((work, case.path))
    results: dict[int, dict[str, Any]] = {}
    while len(results) < world:
        open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = [pipe for pipe in wait(open_pipes, PATIENCE) if isinstance(pipe, Connection)]
        for pipe in ready:
            message = pipe.recv()
            if isinstance(message, str):
                _end(processes)
                raise RuntimeError(message)
            results[pipes.index(pipe)] = torch.load(io.BytesIO(message), weights_only=True)
        if not ready:
            _end(processes)
            raise RuntimeError(f"{case.path}: no answer from a rank within {PATIENCE:.0f} s")
    return [results[rank] for rank in range(world)]


@functools.cache
def _processes(world: int) -> tuple[list[ForkServerProcess], list[Connection]]:
    meeting = str(Path(tempfile.mkdtemp()) / "meeting")
    processes, pipes = [], []
    for rank in range(world):
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(
            target=_serve, args=(theirs, rank, world, meeting), daemon=True
        )  # a daemon: it ends with the tests
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    return processes, pipes


def _end(processes: list[ForkServerProcess]) -> None:
    """Kill all processes, because the others would hang; the next case starts new ones."""
    for process in processes:
        process.kill()
    _processes.cache_clear()


def _serve(pipe: Connection, rank: int, world: int, meeting: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
    )
    while True:
        work, path = pipe.recv()
        try:
            buffer = io.BytesIO()
            torch.save(work(Case(path), rank), buffer)
            pipe.send(buffer.getvalue())
        except Exception:
            pipe.send(f"rank {rank}:\n{traceback.format_exc()}")
