"""Grad-CAM on attention: where a caption was found in an image. Selvaraju et al., ICCV 2017; on
ALBEF's cross-attention as in its section 6 (Li et al., NeurIPS 2021).

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
    """BertAttention probabilities and the gradient of what was asked with respect to them."""

    probabilities: Tensor  # [P, H, L, N]
    gradient: Tensor  # the same

    @property
    def evidence(self) -> Tensor:
        """[P, H, L, N - 1]: probability times positive gradient, at the patches."""
        return (self.probabilities * self.gradient.clamp_min(0))[..., 1:].detach()


def trace_attention(module: nn.Module, score: Callable[[], Tensor]) -> AttentionTrace:
    """What the attention ``module`` (ours, or timm's) does while ``score()`` computes a scalar.

    The module must be in eval mode and run once; its kernel gives no probabilities, so they are
    computed here and take part in the result.
    """
    with torch.enable_grad(), _explicit(module) as seen:
        total = score()
        gradient = torch.autograd.grad(total, seen[0])[0]
    return AttentionTrace(seen[0].detach(), gradient)


@contextmanager
def _explicit(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    compute = _cross if isinstance(module, BertAttention) else _self
    hook = module.register_forward_hook(lambda m, given, _: compute(m, given, seen))
    try:
        yield seen
    finally:
        hook.remove()


def _cross(module: nn.Module, given: tuple, seen: list[Tensor]) -> Tensor:
    """`BertAttention.forward` with probabilities that are seen."""
    assert isinstance(module, BertAttention)
    x, (keys, values), mask = given
    query = module.query(x).unflatten(2, (module.heads, -1)).transpose(1, 2)
    logits = query @ keys.transpose(2, 3) / math.sqrt(query.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    mixed = _mix(logits, values, seen)
    return module.norm(x + module.out(mixed))


def _self(module: nn.Module, given: tuple, seen: list[Tensor]) -> Tensor:
    """The forward of timm's attention."""
    qkv = module.qkv(given[0]).unflatten(2, (3, module.num_heads, -1))  # type: ignore[operator]
    query, keys, values = qkv.permute(2, 0, 3, 1, 4)
    mixed = _mix(query @ keys.transpose(2, 3) / math.sqrt(query.shape[-1]), values, seen)
    return module.proj(mixed)  # type: ignore[operator]


def _mix(logits: Tensor, values: Tensor, seen: list[Tensor]) -> Tensor:
    probabilities = logits.softmax(dim=-1)
    if not probabilities.requires_grad:  # frozen weights, or inputs made without gradients
        probabilities.requires_grad_()
    seen.append(probabilities)
    return (probabilities @ values).transpose(1, 2).flatten(2)


def caption_maps(evidence: Tensor, mask: Tensor) -> Tensor:
    """[P, g, g] of whole captions from ``evidence`` [P, H, L, N - 1] and their ``mask`` [P, L]:
    mean over heads and over all L positions (hidden ones count as zeros)."""
    return (evidence * mask[:, None, :, None]).mean(dim=(1, 2)).unflatten(1, _grid(evidence))


def word_maps(evidence: Tensor) -> Tensor:
    """[P, L, g, g]: a map for each word, mean over heads."""
    return evidence.mean(dim=1).unflatten(2, _grid(evidence))


def class_maps(evidence: Tensor) -> Tensor:
    """[P, g, g] from self-attention of an image: what its class token looks at, mean over heads."""
    return evidence[:, :, 0].mean(dim=1).unflatten(1, _grid(evidence))


def _grid(evidence: Tensor) -> tuple[int, int]:
    side = math.isqrt(evidence.shape[-1])
    return side, side
