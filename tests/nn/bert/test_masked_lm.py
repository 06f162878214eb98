"""Masked words: shares, what is never touched, and a loss over guessed places alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from itr.draws import Draws
from itr.nn.bert.masked_lm import mask_tokens, masked_positions, mlm_loss

MASK, VOCABULARY = 4, 1000


def captions(rows: int = 400, length: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(length) < torch.randint(2, length + 1, (rows, 1), generator=generator)
    tokens = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    tokens[:, 0] = 2
    return tokens * mask, mask


def test_masking_rates_and_unselected_positions() -> None:
    tokens, mask = captions()
    hidden = mask_tokens(tokens, mask, Draws(1), 0.15, MASK, VOCABULARY)
    picked = hidden.labels != -100
    assert not picked[:, 0].any() and not (picked & ~mask).any()
    assert torch.equal(hidden.labels[picked], tokens[picked])
    assert torch.equal(hidden.tokens[~picked], tokens[~picked])
    free = mask.clone()
    free[:, 0] = False
    n = int(free.sum())
    masked = picked & (hidden.tokens == MASK)
    same = picked & (hidden.tokens == tokens)
    for seen, share in ((picked, 0.15), (masked, 0.12), (same, 0.015)):
        band = 5 * (share * (1 - share) / n) ** 0.5 + 1e-3 * share
        assert abs(int(seen.sum()) / n - share) < band


@pytest.mark.parametrize("probability", [0.01, 0.15, 0.5, 1.0])
def test_masked_positions_include_every_selected_position(probability: float) -> None:
    tokens, mask = captions()
    for seed in range(20):
        labels = mask_tokens(tokens, mask, Draws(seed), probability, MASK, VOCABULARY).labels
        places = masked_positions(labels, probability)
        assert len(set(places.tolist())) == len(places)
        assert (labels.flatten()[places] != -100).sum() == (labels != -100).sum()
    if probability < 0.5:
        assert len(places) < 1.2 * probability * labels.numel() + 100


def test_loss_equals_the_loss_over_all_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 11, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 7, 11, generator=generator)
    labels = torch.full((3, 7), -100)
    labels[0, 2], labels[1, 5], labels[2, 6] = 3, 0, 10
    guessed = labels != -100
    hard = F.cross_entropy(logits[guessed], labels[guessed])
    share = teacher[guessed].softmax(-1)
    soft = -(share * logits[guessed].log_softmax(-1)).sum(-1).mean()
    expected = 0.7 * hard + 0.3 * soft
    (gradient,) = torch.autograd.grad(expected, logits)
    places = masked_positions(labels, 0.15)
    picked = logits.flatten(0, 1)[places]
    found = mlm_loss(picked, labels.flatten()[places], teacher.flatten(0, 1)[places], alpha=0.3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient)


def test_loss_is_zero_without_selected_positions() -> None:
    labels = torch.full((4,), -100)
    assert float(mlm_loss(torch.randn(4, 9), labels, torch.randn(4, 9), 0.4)) == 0.0
