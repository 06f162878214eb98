"""Unimodal features of ALBEF and of its momentum encoders (section 3.1).

B pairs, N image tokens, L words, E joint width, Dv image width, D text width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from itr.nn.bert.halves import text_states


class ALBEFFeatures(NamedTuple):
    """One encoded modality."""

    unit: Tensor  # [B, E] float32, unit length
    tokens: Tensor  # [B, N, Dv] or [B, L, D]


def image_features(owner: nn.Module, pixels: Tensor) -> ALBEFFeatures:
    """Encode ``pixels`` [B, 3, H, W] with the encoders of ``owner``: the model or its twin."""
    tokens = owner.get_submodule("vision").forward_features(pixels)  # type: ignore[operator]
    return ALBEFFeatures(_unit(owner.get_submodule("vision_proj")(tokens[:, 0])), tokens)


def text_features(owner: nn.Module, tokens: Tensor, mask: Tensor) -> ALBEFFeatures:
    """Encode token ids [B, L] with the encoders of ``owner``; ``mask`` [B, L] bool."""
    states = text_states(owner.get_submodule("text"), tokens, mask)
    return ALBEFFeatures(_unit(owner.get_submodule("text_proj")(states[:, 0])), states)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
