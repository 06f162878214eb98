"""What is done to the repeated blocks of a model's towers: recomputing them, compiling them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itr.nn.batch_norm import batch_norms
from itr.nn.momentum import MomentumTwin


def tower_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of ``model``'s towers by name: members of its outermost lists (or sequences) of
    modules of one class that have parts of their own. Momentum encoders and blocks with batch
    statistics, which would count a batch twice, are left out."""
    found: dict[str, nn.Module] = {}

    def walk(module: nn.Module, name: str) -> None:
        if isinstance(module, MomentumTwin):
            return
        if isinstance(module, nn.ModuleList | nn.Sequential) and _repeats(module):
            blocks = ((f"{name}.{key}", block) for key, block in module.named_children())
            found.update((key, block) for key, block in blocks if not batch_norms(block))
            return
        for key, child in module.named_children():
            walk(child, f"{name}.{key}" if name else key)

    walk(model, "")
    return found


def _repeats(modules: nn.Module) -> bool:
    members = list(modules.children())
    return (
        bool(members)
        and len({type(member) for member in members}) == 1
        and next(members[0].children(), None) is not None
    )


def recompute(model: nn.Module) -> int:
    """Keep only what enters each tower block, and compute the rest again in the backward pass: the
    same numbers, dropout included. How many blocks there are."""
    blocks = tower_blocks(model)
    for block in blocks.values():
        block.forward = functools.partial(_recomputed, block.forward)
    return len(blocks)


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)


def compile_towers(model: nn.Module) -> int:
    """Let torch.compile make each tower block faster; how many there are. Blocks of one class
    share what was compiled. Weights keep their names."""
    blocks = tower_blocks(model)
    for block in blocks.values():
        block.compile()
    return len(blocks)
