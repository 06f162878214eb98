"""A function of many rows that holds a few of them at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(function: Callable[..., Tensor], rows: int | None, *given: Tensor) -> Tensor:
    """``function`` of ``given`` ([P, ...] each; its value has P rows, too), ``rows`` of them at a
    time; None, or where no gradient is wanted: at once.

    The same numbers and the same gradient. Of a piece only what goes in and comes out is kept; the
    backward pass computes it again, with the same dropout.
    """
    if rows is None or len(given[0]) <= rows or not torch.is_grad_enabled():
        return function(*given)
    pieces = zip(*(tensor.split(rows) for tensor in given), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])
