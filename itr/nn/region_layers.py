"""Layers over region features. B images, R regions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class RegionMLP(nn.Module):
    """The MLP branch parallel to the linear projection of regions (VSE-infinity).

    Its batch statistics include padded regions, as in the authors' code.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.inner = nn.Linear(width, size // 2)
        self.norm = nn.BatchNorm1d(size // 2)
        self.outer = nn.Linear(size // 2, size)
        self.unused_norm = nn.BatchNorm1d(size)  # part of the authors' checkpoints, never applied

    def forward(self, regions: Tensor) -> Tensor:
        """[B, R, width] -> [B, R, size]."""
        hidden = self.inner(regions)
        hidden = self.norm(hidden.flatten(0, 1)).view_as(hidden)
        return self.outer(F.relu(hidden))
