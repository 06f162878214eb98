"""Generalised pooling operator (VSE-infinity, Chen et al. 2021, section 3). B samples, N fragments,
D width, U different lengths.

A small GRU over position codes decides how much the largest, second largest, ... value of every
channel counts. It never sees the features: the weights depend on the number of fragments alone,
and are computed once for each length instead of once for each sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 0.1


def position_codes(count: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sine and cosine codes [count, width] of positions 0, 1, ... (Vaswani et al. 2017, 3.5)."""
    even = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    angle = torch.arange(count, device=device)[:, None] * (even * (-math.log(1e4) / width)).exp()
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class GPO(nn.Module):
    """Weighs the sorted values of each channel. Width of the codes and of the GRU: 32."""

    def __init__(self, codes: int = 32, hidden: int = 32):
        super().__init__()
        self.codes, self.hidden = codes, hidden
        self.gru = nn.GRU(codes, hidden, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden, 1, bias=False)

    def scores(self, shortest: int, longest: int) -> Tensor:
        """[U, longest] scores before the softmax, a row for each length in
        ``shortest`` ... ``longest``; what lies behind a row's length means nothing.

        The codes of every length end at the last place, so that the backward GRU begins at its own
        end; the forward GRU of the longest one serves them all.
        """
        device = self.score.weight.device
        place = torch.arange(longest, device=device)
        missing = longest - torch.arange(shortest, longest + 1, device=device)[:, None]  # [U, 1]
        codes = position_codes(longest, self.codes, device)[(place - missing).clamp(min=0)]
        states = self.gru(codes)[0].unflatten(2, (2, self.hidden))  # [U, longest, 2, hidden]
        ways = self.score(states).squeeze(3)
        backward = ways[..., 1].gather(1, (place + missing).clamp(max=longest - 1))
        return (ways[-1, :, 0] + backward) / 2

    def weights(self, shortest: int, longest: int) -> Tensor:
        """[U, longest]: rows sum to 1, exact zeros behind the length of the row."""
        device = self.score.weight.device
        length = torch.arange(shortest, longest + 1, device=device)[:, None]
        behind = torch.arange(longest, device=device) >= length
        scores = self.scores(shortest, longest).masked_fill(behind, -torch.inf)
        return (scores / TEMPERATURE).softmax(dim=1)

    def forward(self, features: Tensor, mask: Tensor, shortest: int = 0) -> Tensor:
        """[B, N, D], [B, N] bool (each row True, then False) -> [B, D] float32.

        ``shortest``: the fewest fragments of a sample, known on the host (0: not known).
        """
        with torch.autocast(features.device.type, enabled=False):
            count = features.shape[1]
            channels = features.float().transpose(1, 2).contiguous()
            table = self.weights(max(shortest, 1), count)
            if len(table) == 1:  # every sample has all N
                return channels.sort(dim=2, descending=True).values @ table[0]
            behind = ~mask[:, None, :]
            ordered = channels.masked_fill(behind, -torch.inf).sort(dim=2, descending=True).values
            ordered = ordered.masked_fill(behind, 0.0)
            weights = table[mask.sum(dim=1) - max(shortest, 1)]
            return (ordered @ weights[:, :, None]).squeeze(2)
