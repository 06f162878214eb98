"""Pooling over a masked axis. B samples, M fragments (regions or words), D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, D] of the fragments of ``features`` [B, M, D] where ``mask`` [B, M] is True.

    Zeros for a sample without fragments.
    """
    share = mask / mask.sum(dim=1, keepdim=True).clamp_(min=1)
    return torch.bmm(share.to(features.dtype)[:, None], features).squeeze(1)


def masked_top2_mean(features: Tensor, mask: Tensor, shrinking: bool = False) -> Tensor:
    """Per channel, the mean of the two largest valid values: [B, M, D], [B, M] -> [B, D].

    For a sample with one fragment, that fragment. ``shrinking`` reproduces the code of HREM's
    authors: after such a sample, all later samples of the batch also use only the largest value.
    """
    valid = features.masked_fill(~mask[:, :, None], -torch.inf)
    first, index = valid.max(dim=1)
    second = valid.scatter(1, index[:, None], -torch.inf).max(dim=1).values
    single = second == -torch.inf
    if shrinking:
        single = mask.sum(dim=1).cummin(dim=0).values[:, None] < 2
    return (first + torch.where(single, first, second)) * 0.5


class MeanPool(nn.Module):
    """The mean of all fragments, with the interface of `GPO`."""

    def forward(self, features: Tensor, mask: Tensor, shortest: int = 0) -> Tensor:
        """[B, M, D], [B, M] bool -> [B, D] float32."""
        return masked_mean(features.float(), mask)


class FirstTokenPool(nn.Module):
    """The first fragment (BERT's [CLS]), with the interface of `GPO`."""

    def forward(self, features: Tensor, mask: Tensor, shortest: int = 0) -> Tensor:
        """[B, M, D], [B, M] bool -> [B, D] float32."""
        return features[:, 0].float()


def l2_normalize(features: Tensor, eps: float = 1e-8) -> Tensor:
    """``features`` [..., D] divided by (their L2 norm + ``eps``), in float32."""
    features = features.float()
    return features / (features.norm(dim=-1, keepdim=True) + eps)
