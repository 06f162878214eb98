"""Who else trains, and what they hold: rank, world, gathering. W ranks, B rows of one rank.

Every function works without a process group, where it answers for one process.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Gradient = Literal["none", "own", "full"]


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _grouped() else 1


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
    return dist.is_available() and dist.is_initialized()


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
