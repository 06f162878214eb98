"""Pooling over a masked axis. B samples, M fragments (regions or words), D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of the fragments of ``features`` [B, M, D] where ``mask`` [B, M] is True: [B, D].

    A sample without any fragment gives zeros.
    """
    share = mask / mask.sum(dim=1, keepdim=True).clamp_(min=1)
    return torch.bmm(share.to(features.dtype)[:, None], features).squeeze(1)


def masked_top2_mean(features: Tensor, mask: Tensor, shrinking: bool = False) -> Tensor:
    """Per channel, the mean of the two largest valid values: [B, M, D], [B, M] -> [B, D].

    A sample with one fragment gives that fragment. ``shrinking`` repeats a habit of the authors of
    HREM: such a sample takes the second value away from every later sample of the batch, too.
    """
    valid = features.masked_fill(~mask[:, :, None], -torch.inf)
    first, place = valid.max(dim=1)
    second = valid.scatter(1, place[:, None], -torch.inf).max(dim=1).values
    alone = second == -torch.inf
    if shrinking:
        alone = mask.sum(dim=1).cummin(dim=0).values[:, None] < 2
    return (first + torch.where(alone, first, second)) * 0.5


class MeanPool(nn.Module):
    """The mean of all fragments, as a module that stands where `GPO` may stand."""

    def forward(self, features: Tensor, mask: Tensor, shortest: int = 0) -> Tensor:
        """[B, M, D], [B, M] bool -> [B, D] float32."""
        return masked_mean(features.float(), mask)


class FirstTokenPool(nn.Module):
    """The first fragment: BERT's [CLS]."""

    def forward(self, features: Tensor, mask: Tensor, shortest: int = 0) -> Tensor:
        """[B, M, D], [B, M] bool -> [B, D] float32."""
        return features[:, 0].float()


def l2_normalize(features: Tensor, eps: float = 1e-8) -> Tensor:
    """``features`` [..., D] divided by (their L2 norm + ``eps``), in float32."""
    features = features.float()
    return features / (features.norm(dim=-1, keepdim=True) + eps)
