"""Pooling over a masked axis. B samples, M fragments (regions or words), D width."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of the fragments of ``features`` [B, M, D] where ``mask`` [B, M] is True: [B, D].

    A sample without any fragment gives zeros.
    """
    total = torch.where(mask[:, :, None], features, 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def masked_top2_mean(features: Tensor, mask: Tensor, shrinking: bool = False) -> Tensor:
    """Per channel, the mean of the two largest valid values: [B, M, D], [B, M] -> [B, D].

    A sample with one fragment gives that fragment. ``shrinking`` repeats a habit of the authors of
    HREM: such a sample takes the second value away from every later sample of the batch, too.
    """
    open_ = features.masked_fill(~mask[:, :, None], -torch.inf)
    first, place = open_.max(dim=1)
    second = open_.scatter(1, place[:, None], -torch.inf).max(dim=1).values
    lengths = mask.sum(dim=1)
    if shrinking:
        lengths = lengths.cummin(dim=0).values
    second = torch.where(lengths[:, None] >= 2, second, first)
    return (first + second) / 2


def unit_length(features: Tensor, eps: float = 1e-8) -> Tensor:
    """``features`` [..., D] divided by (their L2 norm + ``eps``), in float32."""
    features = features.float()
    return features / (features.norm(dim=-1, keepdim=True) + eps)
