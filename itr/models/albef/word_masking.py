"""Masked words with soft targets, ALBEF's third term in pre-training (sections 3.2 and 3.3).

B pairs, N image tokens, L words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from itr.draws import Draws
from itr.models.momentum_contrast import MomentumFeatures
from itr.nn.bert.fusion import KeysValues
from itr.nn.bert.masked_lm import mask_tokens, masked_positions, mlm_logits, mlm_loss

if TYPE_CHECKING:
    from itr.models.albef.model import ALBEF


def masked_words(
    model: ALBEF,
    tokens: Tensor,
    mask: Tensor,
    images: list[KeysValues],
    keys: MomentumFeatures,
    alpha: float,
    draws: Draws,
) -> Tensor:
    """The masked language modeling loss, with the momentum model's predictions as soft targets of
    weight ``alpha`` (equation 7). ``tokens``, ``mask`` [B, L]."""
    config, mask_id = model.config, model.facts.mask_id
    assert mask_id is not None
    probability = config.mask_probability
    hidden = mask_tokens(tokens, mask, draws, probability, mask_id, model.facts.vocabulary)
    positions = masked_positions(hidden.labels, probability)
    teacher = None
    if config.distill and config.distill_words:
        with torch.no_grad():
            fusion = model.twin.get_submodule("fusion")
            image_keys = fusion.keys_values(keys.image_tokens)  # type: ignore[operator]
            teacher = mlm_logits(model.twin, hidden.tokens, mask, image_keys, positions)
    student = mlm_logits(model, hidden.tokens, mask, images, positions, model.chunk_pairs)
    return mlm_loss(student, hidden.labels.flatten()[positions], teacher, alpha)
