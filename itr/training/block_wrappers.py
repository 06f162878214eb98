"""Activation checkpointing and compilation of the repeated blocks of a model's encoders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itr.nn.batch_norm import batch_norms
from itr.nn.encoder_blocks import encoder_stacks


def encoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks of ``model``'s encoders by name, see `encoder_stacks`.

    Blocks with batch normalization, which would count a batch twice when it is recomputed, are
    excluded.
    """
    names = (name for stack in encoder_stacks(model).values() for name in stack)
    blocks = {name: model.get_submodule(name) for name in names}
    return {name: block for name, block in blocks.items() if not batch_norms(block)}


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
