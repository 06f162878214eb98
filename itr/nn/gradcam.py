"""Grad-CAM on attention maps: the image patches that support a match with a caption.

Selvaraju et al., ICCV 2017; applied to cross-attention as in ALBEF, section 6 (Li et al., NeurIPS
2021).

P pairs, H heads, L words, N image tokens (the class token first), g patches a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from itr.nn.bert.fusion import BertAttention


class AttentionTrace(NamedTuple):
    """BertAttention probabilities and the gradient of a score with respect to them."""

    probabilities: Tensor  # [P, H, L, N]
    gradient: Tensor  # [P, H, L, N]

    @property
    def evidence(self) -> Tensor:
        """Probability times positive gradient [P, H, L, N - 1], of the patches."""
        return (self.probabilities * self.gradient.clamp_min(0))[..., 1:].detach()


def trace_attention(module: nn.Module, score: Callable[[], Tensor]) -> AttentionTrace:
    """Trace the attention ``module`` (ours, or timm's) while ``score()`` computes a scalar.

    The module must be in eval mode and run once. Its fused kernel returns no probabilities, so a
    hook recomputes the output with explicit ones.
    """
    with torch.enable_grad(), _explicit(module) as probabilities:
        total = score()
        gradient = torch.autograd.grad(total, probabilities[0])[0]
    return AttentionTrace(probabilities[0].detach(), gradient)


@contextmanager
def _explicit(module: nn.Module) -> Iterator[list[Tensor]]:
    recorded: list[Tensor] = []
    compute = _cross if isinstance(module, BertAttention) else _self
    hook = module.register_forward_hook(lambda m, inputs, _: compute(m, inputs, recorded))
    try:
        yield recorded
    finally:
        hook.remove()


def _cross(module: nn.Module, inputs: tuple, recorded: list[Tensor]) -> Tensor:
    """`BertAttention.forward` with explicit probabilities."""
    assert isinstance(module, BertAttention)
    x, (keys, values), mask = inputs
    query = module.query(x).unflatten(2, (module.heads, -1)).transpose(1, 2)
    logits = query @ keys.transpose(2, 3) / math.sqrt(query.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    mixed = _mix(logits, values, recorded)
    return module.norm(x + module.out(mixed))


def _self(module: nn.Module, inputs: tuple, recorded: list[Tensor]) -> Tensor:
    """The forward pass of timm's attention with explicit probabilities."""
    qkv = module.qkv(inputs[0]).unflatten(2, (3, module.num_heads, -1))  # type: ignore[operator]
    query, keys, values = qkv.permute(2, 0, 3, 1, 4)
    mixed = _mix(query @ keys.transpose(2, 3) / math.sqrt(query.shape[-1]), values, recorded)
    return module.proj(mixed)  # type: ignore[operator]


def _mix(logits: Tensor, values: Tensor, recorded: list[Tensor]) -> Tensor:
    probabilities = logits.softmax(dim=-1)
    if not probabilities.requires_grad:  # frozen weights, or inputs made without gradients
        probabilities.requires_grad_()
    recorded.append(probabilities)
    return (probabilities @ values).transpose(1, 2).flatten(2)


def caption_maps(evidence: Tensor, mask: Tensor) -> Tensor:
    """Maps [P, g, g] of captions from ``evidence`` [P, H, L, N - 1] and their ``mask`` [P, L].

    The mean over heads and all L positions; padding counts as zeros.
    """
    return (evidence * mask[:, None, :, None]).mean(dim=(1, 2)).unflatten(1, _grid(evidence))


def word_maps(evidence: Tensor) -> Tensor:
    """Maps [P, L, g, g] of words, mean over heads."""
    return evidence.mean(dim=1).unflatten(2, _grid(evidence))


def class_maps(evidence: Tensor) -> Tensor:
    """Maps [P, g, g] of the class token in an image's self-attention, mean over heads."""
    return evidence[:, :, 0].mean(dim=1).unflatten(1, _grid(evidence))


def _grid(evidence: Tensor) -> tuple[int, int]:
    side = math.isqrt(evidence.shape[-1])
    return side, side
