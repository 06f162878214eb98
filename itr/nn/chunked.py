"""Applies a function to rows in chunks to bound the memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(function: Callable[..., Tensor], rows: int | None, *inputs: Tensor) -> Tensor:
    """Apply ``function`` to ``inputs`` [P, ...] in chunks of ``rows`` rows; it returns P rows.

    With ``rows`` None or without gradients, applied at once. Values and gradients are the same in
    both cases. Only inputs and outputs of a chunk are stored; the backward pass recomputes it with
    the same dropout (activation checkpointing).
    """
    if rows is None or len(inputs[0]) <= rows or not torch.is_grad_enabled():
        return function(*inputs)
    chunks = zip(*(tensor.split(rows) for tensor in inputs), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])
