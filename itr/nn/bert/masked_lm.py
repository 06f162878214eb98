"""Masked language modeling: selects and masks tokens, and computes the loss.

P captions, L words, V vocabulary size, C scored positions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.draws import Draws
from itr.nn.bert.fusion import KeysValues
from itr.nn.bert.halves import text_states
from itr.nn.chunked import in_chunks

IGNORED = -100  # label of a position without prediction


class MaskedTokens(NamedTuple):
    """Masked captions and their labels."""

    tokens: Tensor  # [P, L] int64: encoder input
    labels: Tensor  # [P, L] int64: true id at predicted positions, else -100


def mask_tokens(
    tokens: Tensor, mask: Tensor, draws: Draws, probability: float, mask_id: int, vocabulary: int
) -> MaskedTokens:
    """Select tokens of ``tokens`` [P, L] with ``probability``; replace 80% of them by [MASK] and
    10% by a random id, and keep 10%. Padding (``mask`` [P, L] False) and [CLS] are never selected.

    Source: BERT, section 3.1. Four draws of the full shape, in this order: selected, masked,
    randomized, random ids.
    """
    shape, device = tokens.shape, tokens.device
    selected = draws.bernoulli(probability, shape, device) & mask & (tokens != tokens[:, :1])
    masked = selected & draws.bernoulli(0.8, shape, device)
    randomized = selected & ~masked & draws.bernoulli(0.5, shape, device)
    random = draws.randint(vocabulary, shape, device)
    inputs = torch.where(randomized, random, tokens.masked_fill(masked, mask_id))
    return MaskedTokens(inputs, tokens.masked_fill(~selected, IGNORED))


def masked_positions(labels: Tensor, probability: float) -> Tensor:
    """Flat indices [C] into ``labels`` [P, L] that include all predicted positions (and others).

    C depends on shapes only, so that nothing synchronizes with the device: the expected number plus
    eight standard deviations. More positions are selected in fewer than one of 10^13 batches; the
    surplus would not be scored.
    """
    count = labels.numel()
    mean = count * probability
    most = min(count, math.ceil(mean + 8.0 * math.sqrt(mean * (1.0 - probability)) + 8.0))
    return (labels.flatten() != IGNORED).to(torch.int32).topk(most, sorted=False).indices


def mlm_loss(logits: Tensor, labels: Tensor, teacher: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy with the teacher's probabilities.

    The mean over predicted positions; 0 if there are none. ``logits``, ``teacher`` [C, V],
    ``labels`` [C]. Source: ALBEF, equation 7.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_p = logits.float().log_softmax(dim=1)
        predicted = labels != IGNORED
        count = predicted.sum().clamp(min=1)
        loss = F.nll_loss(log_p, labels, ignore_index=IGNORED, reduction="sum") / count
        if teacher is None:
            return loss
        soft = -(teacher.float().softmax(dim=1) * log_p).sum(dim=1)
        return (1.0 - alpha) * loss + alpha * (soft * predicted).sum() / count


def mlm_logits(
    owner: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    images: list[KeysValues],
    positions: Tensor,
    rows: int | None = None,
) -> Tensor:
    """MLM logits [C, V] of ``owner`` at ``positions`` [C] of the flattened ``tokens`` [B, L].

    The encoders process ``rows`` captions at a time.
    """
    text, fusion = owner.get_submodule("text"), owner.get_submodule("fusion")

    def fused(tokens: Tensor, mask: Tensor, image_of: Tensor) -> Tensor:
        rows_of = None if len(image_of) == len(all_rows) else image_of
        return fusion(text_states(text, tokens, mask), mask, images, rows_of)

    all_rows = torch.arange(len(tokens), device=tokens.device)
    states = in_chunks(fused, rows, tokens, mask, all_rows)
    embedding = text.get_submodule("embeddings.word_embeddings").weight
    return owner.get_submodule("words")(states.flatten(0, 1)[positions], embedding)
