"""Who else trains, and what they hold: rank, world, gathering. W ranks, B rows of one rank.

Every function works without a process group, where it answers for one process.
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

from itr.errors import Stopped

Gradient = Literal["none", "own", "full"]
T = TypeVar("T")
PATIENCE = timedelta(days=2)  # how long ranks wait for one that prepares data
_waiting: Any = None  # the group of those that wait so long
_alone = False


def launched() -> bool:
    """Whether somebody started this process as one of several (torchrun sets these)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def planned_world(devices: int, nodes: int) -> int:
    """How many processes will train together: what the launcher says, else what was asked for."""
    return int(os.environ["WORLD_SIZE"]) if launched() else devices * nodes


def local_rank() -> int:
    """This process's number on its machine, from 0: the GPU that is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world() -> int:
    """How many processes this machine runs."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def join(cuda: bool, timeout: float) -> None:
    """Meet the other processes that were launched; nothing for a process on its own, or twice.

    A collective that takes more than ``timeout`` seconds fails. Tensors of the CPU travel by gloo,
    those of a GPU by NCCL.
    """
    global _waiting
    if not launched() or _grouped():
        return
    if cuda:
        torch.cuda.set_device(local_rank())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout)
    )
    _waiting = dist.new_group(backend="gloo", timeout=PATIENCE)
    atexit.register(leave)


def leave() -> None:
    """Part from the others."""
    global _waiting
    if _grouped():
        _waiting = None
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _grouped() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process takes itself for the only one (a trial pass, which must not wait)."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


@contextmanager
def first_alone() -> Iterator[None]:
    """The others begin when rank 0 has done what is inside, so that they find its files."""
    if rank() != 0 and _waiting is not None:
        dist.barrier(_waiting)
    yield
    if rank() == 0 and _waiting is not None:
        dist.barrier(_waiting)


def decided(decide: Callable[[], T]) -> T:
    """What ``decide`` gives on rank 0, on every rank; or its exception, on every rank. They wait
    for it as long as it takes."""
    if world_size() == 1:
        return decide()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = decide()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0, group=_waiting, device=torch.device("cpu"))
    if found[1] is not None:
        raise found[1]
    return found[0]


def gather_objects(own: T) -> list[T]:
    """What every rank holds, in rank order."""
    if world_size() == 1:
        return [own]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, own)
    return everyone


@contextmanager
def left_together() -> Iterator[None]:
    """Where a rank raises Stopped inside, all ranks do behind it; there they wait for each other.

    Ranks that share work have unequal numbers of batches: one that left alone would leave the
    others in a collective.
    """
    asked = None
    try:
        yield
    except Stopped as stopped:
        asked = stopped
    for told in gather_objects(asked):
        if told is not None:
            raise told


def add_up(own: Tensor) -> Tensor:
    """The sum of ``own`` over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(own)
    return own


def copy_first(tensors: Iterable[Tensor]) -> None:
    """Each of ``tensors`` becomes what rank 0 has, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


class Agreement:
    """The largest number that any rank named in the round before: nobody waits for a late one."""

    def __init__(self) -> None:
        self.asked: tuple[Any, Tensor] | None = None

    def __call__(self, own: int) -> int:
        """Names ``own``; gives the answer of the round before (alone: of this one)."""
        if world_size() == 1:
            return own
        answer = 0
        if self.asked is not None:
            self.asked[0].wait()
            answer = int(self.asked[1])
        value = torch.tensor(own)
        work = dist.all_reduce(value, op=dist.ReduceOp.MAX, async_op=True)
        self.asked = work, value
        return answer


def average(tensors: Iterable[Tensor]) -> None:
    """Each of ``tensors`` becomes its mean over all ranks, in place."""
    if world_size() == 1:
        return
    kept = [tensor for tensor in tensors if tensor.numel()]
    for kind in dict.fromkeys((t.dtype, t.device) for t in kept):
        alike = [t for t in kept if (t.dtype, t.device) == kind]
        flat = torch.cat([t.flatten() for t in alike])
        flat = add_up(flat).div_(world_size())
        parts = flat.split([t.numel() for t in alike])
        torch._foreach_copy_(alike, [p.view_as(t) for p, t in zip(parts, alike, strict=True)])


def gather(own: Tensor, gradient: Gradient = "none") -> Tensor:
    """The rows of all ranks, in rank order: [B, ...] -> [W * B, ...], B equal on all ranks.

    ``gradient`` says what flows back into ``own``: ``none``; ``own``, what comes through this
    rank's rows in this rank's graph; ``full``, what comes through them in the graphs of all ranks,
    summed. Where every rank computes the same loss of the gathered rows and gradients are averaged
    over ranks, ``full`` is the gradient of that loss, and ``own`` 1/W of it.
    """
    if world_size() == 1:
        return own.detach() if gradient == "none" else own
    if gradient == "full":
        return _GatherFull.apply(own)
    everyone = _gathered(own)
    if gradient == "own":
        first = rank() * len(own)
        return torch.cat([everyone[:first], own, everyone[first + len(own) :]])
    return everyone


def _grouped() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


@torch.no_grad()
def _gathered(own: Tensor) -> Tensor:
    own = own.detach().contiguous()
    everyone = own.new_empty((world_size() * len(own), *own.shape[1:]))
    dist.all_gather_into_tensor(everyone, own)
    return everyone


class _GatherFull(torch.autograd.Function):
    """`gather` whose backward sums the gradients of all ranks and keeps this rank's rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        return _gathered(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]
