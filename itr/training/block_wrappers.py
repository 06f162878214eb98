"""Activation checkpointing and compilation of the repeated blocks of a model's encoders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itr.nn.batch_norm import batch_norms
from itr.nn.momentum import MomentumTwin


def encoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks of ``model``'s encoders by name.

    These are the members of each outermost ``ModuleList`` or ``Sequential`` whose members share one
    class and have submodules. Momentum encoders are excluded, and so are blocks with batch
    normalization, which would count a batch twice when it is recomputed.
    """
    blocks: dict[str, nn.Module] = {}

    def walk(module: nn.Module, name: str) -> None:
        if isinstance(module, MomentumTwin):
            return
        if isinstance(module, nn.ModuleList | nn.Sequential) and _is_stack(module):
            members = ((f"{name}.{key}", block) for key, block in module.named_children())
            blocks.update((key, block) for key, block in members if not batch_norms(block))
            return
        for key, child in module.named_children():
            walk(child, f"{name}.{key}" if name else key)

    walk(model, "")
    return blocks


def _is_stack(modules: nn.Module) -> bool:
    members = list(modules.children())
    return (
        bool(members)
        and len({type(member) for member in members}) == 1
        and next(members[0].children(), None) is not None
    )


def checkpoint_activations(model: nn.Module) -> int:
    """Recompute each encoder block in the backward pass; returns the number of blocks.

    Only the inputs of a block are stored. Numbers do not change, dropout included.
    """
    blocks = encoder_blocks(model)
    for block in blocks.values():
        block.forward = functools.partial(_checkpointed, block.forward)
    return len(blocks)


def _checkpointed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)


def compile_blocks(model: nn.Module) -> int:
    """Compile each encoder block with torch.compile; returns the number of blocks.

    Blocks of one class share the compiled code. Parameter names do not change.
    """
    blocks = encoder_blocks(model)
    for block in blocks.values():
        block.compile()
    return len(blocks)
