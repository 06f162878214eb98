"""Masked-word modelling: which words are hidden, and what guessing them costs.

P captions, L words, V vocabulary, C places that are scored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.draws import Draws

IGNORED = -100  # label of a place where nothing is guessed


class MaskedTokens(NamedTuple):
    """Captions with hidden words, and where the hidden ones are."""

    tokens: Tensor  # [P, L] int64: what the encoder reads
    labels: Tensor  # [P, L] int64: the true id where a word is guessed, else -100


def mask_tokens(
    tokens: Tensor, mask: Tensor, draws: Draws, probability: float, mask_id: int, vocabulary: int
) -> MaskedTokens:
    """Pick words of ``tokens`` [P, L] with ``probability``; 80% of those become [MASK], 10% any id,
    10% stay. Padding (``mask`` [P, L] False) and the first token ([CLS]) are never picked.

    Source: BERT, section 3.1. Four draws of the full shape, in this order: picked, masked, random,
    the random ids.
    """
    shape, device = tokens.shape, tokens.device
    picked = draws.bernoulli(probability, shape, device) & mask & (tokens != tokens[:, :1])
    masked = picked & draws.bernoulli(0.8, shape, device)
    other = picked & ~masked & draws.bernoulli(0.5, shape, device)
    random = draws.randint(vocabulary, shape, device)
    hidden = torch.where(other, random, tokens.masked_fill(masked, mask_id))
    return MaskedTokens(hidden, tokens.masked_fill(~picked, IGNORED))


def masked_positions(labels: Tensor, probability: float) -> Tensor:
    """[C] places in ``labels`` [P, L], flattened, that hold every guessed word (and some others).

    C depends on shapes alone, so nothing is asked of the device: the expected number and eight
    standard deviations. More words than that are picked less than once in 10^13 batches; the
    surplus would go unscored.
    """
    places = labels.numel()
    mean = places * probability
    most = min(places, math.ceil(mean + 8.0 * math.sqrt(mean * (1.0 - probability)) + 8.0))
    return (labels.flatten() != IGNORED).to(torch.int32).topk(most, sorted=False).indices


def mlm_loss(logits: Tensor, labels: Tensor, teacher: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy with the teacher's shares: the mean over
    guessed words, 0 where there is none. ``logits``, ``teacher`` [C, V], ``labels`` [C].

    Source: ALBEF, equation 7.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_share = logits.float().log_softmax(dim=1)
        guessed = labels != IGNORED
        count = guessed.sum().clamp(min=1)
        loss = F.nll_loss(log_share, labels, ignore_index=IGNORED, reduction="sum") / count
        if teacher is None:
            return loss
        soft = -(teacher.float().softmax(dim=1) * log_share).sum(dim=1)
        return (1.0 - alpha) * loss + alpha * (soft * guessed).sum() / count
