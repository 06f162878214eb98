"""Gated feed-forward blocks with a residual and RMSNorm. D width, M hidden width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.errors import ConfigError

GATES = ("single", "double", "cross", "none")
ACTIVATIONS = ("hswish", "swish")


class _HSwish(torch.autograd.Function):
    """Custom gradient: at -3 and -2 it is that of the middle branch, independent of how a version
    of torch defines the gradient of clamp there, and only x is saved for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x + 3.0).clamp_(0.0, 1.0).mul_(x).div_(6.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = (2.0 * x).add_(3.0).masked_fill_(x < -3.0, 0.0).masked_fill_(x > -2.0, 1.0)
        return slope.div_(6.0).mul_(grad)


def hswish(x: Tensor) -> Tensor:
    """x * clip(x + 3, 0, 1) / 6, the hard-swish of Multi-SEA's authors.

    The standard one clips at 6. This one equals x / 6 for x >= -2, as their checkpoints need.
    """
    return _HSwish.apply(x)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * w over the last axis, always in float32."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D] float32."""
        return super().forward(x.float())


class GatedFeedForward(nn.Module):
    """RMS(x + y), where y is gated in one of three ways (``cross`` is Multi-SEA's dual gate).

    ``cross``: u = f(W1 x), v = Drop(W2 x), y = Drop(W3 (u v)) * f(W4 v).
    ``double``: h = f(W1 x) * Drop(W2 x), y = f(W3 h) * Drop(W4 h).
    ``single``: y = Drop(W2 (f(W1 x) * W3 x)).
    f is ``hswish`` or ``swish``: x * sigmoid(``beta`` x). Raises ConfigError for other names.
    ``none`` (ablation) is BERT's block instead: LayerNorm(x + Drop(W2 GELU(W1 x))).
    """

    dense1: nn.Linear
    dense2: nn.Linear
    dense3: nn.Linear
    dense4: nn.Linear

    def __init__(
        self,
        width: int,
        hidden: int,
        dropout: float,
        gate: str = "cross",
        activation: str = "hswish",
        beta: float = 1.0,
    ):
        super().__init__()
        for key, value, known in (("gate", gate, GATES), ("activation", activation, ACTIVATIONS)):
            if value not in known:
                raise ConfigError(
                    f"model.aformer.{key}={value}: expected one of {', '.join(known)}"
                )
        self.gate, self.activation, self.beta = gate, activation, beta
        shapes = {
            "single": ((width, hidden), (hidden, width), (width, hidden)),
            "double": ((width, hidden), (width, hidden), (hidden, width), (hidden, width)),
            "cross": ((width, hidden), (width, hidden), (hidden, width), (hidden, width)),
            "none": ((width, hidden), (hidden, width)),
        }
        for number, (rows, columns) in enumerate(shapes[gate], start=1):
            setattr(self, f"dense{number}", nn.Linear(rows, columns))
        self.norm = nn.LayerNorm(width, eps=1e-12) if gate == "none" else RMSNorm(width)
        self.dropout = nn.Dropout(dropout)

    def act(self, x: Tensor) -> Tensor:
        """The activation f."""
        if self.activation == "hswish":
            return hswish(x)
        return F.silu(x) if self.beta == 1.0 else x * torch.sigmoid(self.beta * x)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if self.gate == "none":
            return self.norm(x + self.dropout(self.dense2(F.gelu(self.dense1(x)))))
        if self.gate == "single":
            y = self.dropout(self.dense2(self.act(self.dense1(x)) * self.dense3(x)))
            return self.norm(x + y)
        u, v = self.act(self.dense1(x)), self.dropout(self.dense2(x))
        h = u * v
        if self.gate == "double":
            return self.norm(x + self.act(self.dense3(h)) * self.dropout(self.dense4(h)))
        return self.norm(x + self.dropout(self.dense3(h)) * self.act(self.dense4(v)))
