"""Generalized pooling operator, GPO (VSE-infinity, Chen et al. 2021, section 3).

A small GRU over position codes computes the weights of the largest, second largest, ... value of
every channel. The weights depend only on the number of fragments, not on the features, so they are
computed once per length instead of once per sample.

B samples, N fragments, D width, U different lengths.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

TEMPERATURE = 0.1


def position_codes(count: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sine and cosine codes [count, width] of positions (Vaswani et al. 2017, section 3.5)."""
    even = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    angle = torch.arange(count, device=device)[:, None] * (even * (-math.log(1e4) / width)).exp()
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def sorted_descending(values: Tensor) -> Tensor:
    """``values`` along the last axis, the largest first (NaN before it); differentiable.

    On a CPU numpy sorts: it is several times faster than torch, whose sort always keeps the order.
    """
    if values.device.type != "cpu":
        return values.sort(dim=-1, descending=True).values
    array = values.detach().numpy()
    if not (torch.is_grad_enabled() and values.requires_grad):
        return torch.from_numpy(np.sort(array, axis=-1)).flip(-1)
    return values.gather(-1, torch.from_numpy(np.argsort(array, axis=-1)).flip(-1))


class GPO(nn.Module):
    """Weighted sum of the sorted values of each channel; weights from a bidirectional GRU."""

    def __init__(self, codes: int = 32, hidden: int = 32):
        super().__init__()
        self.codes, self.hidden = codes, hidden
        self.gru = nn.GRU(codes, hidden, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden, 1, bias=False)

    def scores(self, shortest: int, longest: int) -> Tensor:
        """Scores [U, longest] before the softmax, one row per length in ``shortest``..``longest``.

        Entries beyond a row's length are undefined. The codes of every length are right-aligned, so
        that the backward GRU starts at the end of its sequence; the forward states of the longest
        sequence serve all lengths.
        """
        device = self.score.weight.device
        position = torch.arange(longest, device=device)
        missing = longest - torch.arange(shortest, longest + 1, device=device)[:, None]  # [U, 1]
        codes = position_codes(longest, self.codes, device)[(position - missing).clamp(min=0)]
        states = self.gru(codes)[0].unflatten(2, (2, self.hidden))  # [U, longest, 2, hidden]
        scores = self.score(states).squeeze(3)  # forward, backward
        backward = scores[..., 1].gather(1, (position + missing).clamp(max=longest - 1))
        return (scores[-1, :, 0] + backward) / 2

    def weights(self, shortest: int, longest: int) -> Tensor:
        """Weights [U, longest]: rows sum to 1, exactly 0 beyond the length of the row."""
        device = self.score.weight.device
        length = torch.arange(shortest, longest + 1, device=device)[:, None]
        behind = torch.arange(longest, device=device) >= length
        scores = self.scores(shortest, longest).masked_fill(behind, -torch.inf)
        return (scores / TEMPERATURE).softmax(dim=1)

    def forward(self, features: Tensor, mask: Tensor, shortest: int = 0) -> Tensor:
        """[B, N, D], [B, N] bool (valid fragments first) -> [B, D] float32.

        ``shortest`` is the smallest number of fragments in the batch, known on the host (0:
        unknown).
        """
        with torch.autocast(features.device.type, enabled=False):
            count = features.shape[1]
            channels = features.float().transpose(1, 2).contiguous()
            table = self.weights(max(shortest, 1), count)
            if len(table) == 1:  # every sample has N fragments
                return sorted_descending(channels) @ table[0]
            behind = ~mask[:, None, :]
            ordered = sorted_descending(channels.masked_fill(behind, -torch.inf))
            ordered = ordered.masked_fill(behind, 0.0)
            weights = table[mask.sum(dim=1) - max(shortest, 1)]
            return (ordered @ weights[:, :, None]).squeeze(2)
