"""Distributed helpers: rank, world size, collectives. W ranks, B rows per rank.

Without a process group every function behaves as for a single process.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from itr.errors import ConfigError, Stopped

GatherGradient = Literal["none", "local", "full"]
T = TypeVar("T")
PREPARATION_TIMEOUT = timedelta(days=2)  # ranks wait this long while rank 0 prepares data
_preparation_group: Any = None  # the process group with that timeout
_single_process = False


def is_launched() -> bool:
    """Whether a launcher started this process (torchrun and Slurm jobs set these variables)."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    alone = os.environ["WORLD_SIZE"] == "1" and "MASTER_ADDR" not in os.environ
    return not alone  # a shell inside a job that was given one device


def planned_world_size(devices: int, nodes: int) -> int:
    """The world size of this training: the launcher's, or ``devices * nodes`` without one."""
    if not is_launched():
        return devices * nodes
    _check_environment()
    return int(os.environ["WORLD_SIZE"])


def local_rank() -> int:
    """Rank of this process on its node, from 0; it is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Number of processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def init(cuda: bool, timeout: float) -> None:
    """Join the process group of a launched process; no effect otherwise, or when called again.

    A collective that takes more than ``timeout`` seconds fails. CPU tensors use gloo, CUDA tensors
    NCCL.
    """
    global _preparation_group
    if not is_launched() or _has_process_group():
        return
    if cuda:
        torch.cuda.set_device(local_rank())
    _check_environment()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"RANK={os.environ['RANK']} WORLD_SIZE={os.environ['WORLD_SIZE']}: the other processes "
            f"were not found within runtime.collective_timeout={timeout:g} seconds ({reason}); "
            "start all of them with torchrun, or unset RANK and WORLD_SIZE to train alone"
        ) from error
    _preparation_group = dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT)
    atexit.register(shutdown)


def _check_environment() -> None:
    """Raises ConfigError if the variables of a launcher are incomplete or no numbers."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise ConfigError(
                f"{name}={value or '(not set)'}: RANK and WORLD_SIZE are set, so a launcher is "
                "expected to set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; start with "
                "torchrun, or unset RANK and WORLD_SIZE to train alone"
            )


def shutdown() -> None:
    """Leave the process group, if there is one."""
    global _preparation_group
    if _has_process_group():
        _preparation_group = None
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if _has_process_group() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _has_process_group() else 1


@contextmanager
def single_process() -> Iterator[None]:
    """Inside this context the process group is ignored: rank 0 of 1, no communication.

    For trial passes that only one rank makes.
    """
    global _single_process
    _single_process = True
    try:
        yield
    finally:
        _single_process = False


@contextmanager
def rank0_first() -> Iterator[None]:
    """Rank 0 runs the block before all other ranks, which then see the files that it wrote."""
    if rank() != 0 and _preparation_group is not None:
        dist.barrier(_preparation_group)
    yield
    if rank() == 0 and _preparation_group is not None:
        dist.barrier(_preparation_group)


def broadcast_from_rank0(function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 only; return its result, or raise its exception, on every rank.

    The other ranks wait up to `PREPARATION_TIMEOUT`.
    """
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]  # result, exception
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=_preparation_group, device=torch.device("cpu"))
    result, failure = outcome
    if failure is not None:
        raise failure
    return result


def all_gather_objects(value: T) -> list[T]:
    """``value`` of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def stop_all_ranks() -> Iterator[None]:
    """If any rank raises `Stopped` inside this context, every rank raises it on exit.

    Synchronizes all ranks on exit. Ranks that share work may have different numbers of batches; a
    rank that stopped by itself would leave the others waiting in a collective.
    """
    own: Stopped | None = None
    try:
        yield
    except Stopped as error:
        own = error
    for stopped in all_gather_objects(own):
        if stopped is not None:
            raise stopped


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of ``tensor`` over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Mean of each tensor over all ranks, in place; one collective per dtype and device."""
    if world_size() == 1:
        return
    not_empty = [tensor for tensor in tensors if tensor.numel()]
    for kind in dict.fromkeys((t.dtype, t.device) for t in not_empty):
        group = [t for t in not_empty if (t.dtype, t.device) == kind]
        flat = torch.cat([t.flatten() for t in group])
        flat = all_reduce_sum(flat).div_(world_size())
        means = flat.split([t.numel() for t in group])
        torch._foreach_copy_(group, [m.view_as(t) for m, t in zip(means, group, strict=True)])


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy each tensor of rank 0 to all ranks, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


class DelayedMax:
    """Maximum over ranks of the previous call's value (one call stale, so it never blocks)."""

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor] | None = None  # collective in flight, its tensor

    def __call__(self, value: int) -> int:
        """Submit ``value``; return the maximum of the previous call, 0 at the first.

        A single process gets ``value`` back.
        """
        if world_size() == 1:
            return value
        previous = 0
        if self._pending is not None:
            work, maximum = self._pending
            work.wait()
            previous = int(maximum)
        tensor = torch.tensor(value)
        self._pending = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True), tensor
        return previous


def all_gather(rows: Tensor, gradient: GatherGradient = "none") -> Tensor:
    """Concatenate the rows of all ranks in rank order: [B, ...] -> [W * B, ...], equal B.

    ``gradient`` selects what flows back into ``rows``:

    - ``none``: nothing;
    - ``local``: the gradient of this rank's rows in this rank's graph;
    - ``full``: the gradient of this rank's rows in the graphs of all ranks, summed.

    If every rank computes the same loss of the gathered rows and gradients are averaged over ranks,
    ``full`` gives the gradient of that loss and ``local`` 1/W of it.
    """
    if world_size() == 1:
        return rows.detach() if gradient == "none" else rows
    if gradient == "full":
        return _GatherFull.apply(rows)
    gathered = _all_gather(rows)
    if gradient == "local":
        first = rank() * len(rows)
        return torch.cat([gathered[:first], rows, gathered[first + len(rows) :]])
    return gathered


def _has_process_group() -> bool:
    return not _single_process and dist.is_available() and dist.is_initialized()


@torch.no_grad()
def _all_gather(rows: Tensor) -> Tensor:
    rows = rows.detach().contiguous()
    gathered = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
    dist.all_gather_into_tensor(gathered, rows)
    return gathered


class _GatherFull(torch.autograd.Function):
    """`all_gather` whose backward sums the gradients of all ranks and returns this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        return _all_gather(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]
