"""Products with a batch's keys and with a queue, and soft targets over both.

B queries and keys, Q rows of the queue, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bank_products(queries: Tensor, keys: Tensor, bank: Tensor) -> Tensor:
    """[B, B + Q]: ``queries`` [B, E] with ``keys`` [B, E], then with ``bank`` [Q, E]; the queue is
    read where it lies and never copied."""
    return torch.cat([queries @ keys.t(), queries @ bank.t()], dim=1)


@torch.no_grad()
def soft_targets(logits: Tensor, match: Tensor, alpha: float) -> Tensor:
    """Rows that sum to 1: ``alpha`` of the softmax of a teacher's ``logits`` [B, B + Q], the rest
    spread evenly over the true matches (``match`` bool). Source: ALBEF, equation 6."""
    true = match.float()
    true = true / true.sum(dim=1, keepdim=True)
    return alpha * logits.softmax(dim=1) + (1.0 - alpha) * true
