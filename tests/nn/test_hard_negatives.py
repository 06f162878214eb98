"""Hard negatives: who may be drawn, how often, and what happens where nobody may."""

from __future__ import annotations

import torch

from itr.draws import Draws
from itr.nn.hard_negatives import draw_negatives, matching_loss, negative_weights


def test_weights_are_a_softmax_with_matches_masked() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.tensor([0, 1, 0, 2, 3])
    forbidden = ids[:, None] == ids[None, :]
    found = negative_weights(logits, forbidden, floor=1e-3)
    for row in range(5):
        shares = [float(x) for x in torch.softmax(logits[row], 0)]
        for column in range(5):
            expected = 0.0 if ids[row] == ids[column] else shares[column] + 1e-3
            assert abs(float(found[row, column]) - expected) < 1e-6


def test_draws_follow_the_weights_and_skip_matches() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0, 2.0]]).expand(4, 4)
    forbidden = torch.eye(4, dtype=torch.bool)
    weights = negative_weights(logits, forbidden)
    counts, draws, n = torch.zeros(2, 4, 4), Draws(3), 4000
    rows = torch.arange(4)
    for _ in range(n):
        chosen = draw_negatives(weights, weights, draws)
        counts[0, rows, chosen.images] += 1
        counts[1, rows, chosen.texts] += 1
    p = weights / weights.sum(dim=1, keepdim=True)
    assert (counts[:, forbidden] == 0).all()
    assert ((counts / n - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-6).all()


def test_confident_rows_keep_a_candidate_with_a_floor() -> None:
    logits, forbidden = torch.eye(4) * 500.0, torch.eye(4, dtype=torch.bool)
    without = negative_weights(logits, forbidden)
    assert not draw_negatives(without, without, Draws(0)).has_image.any()
    weights = negative_weights(logits, forbidden, floor=1e-4)
    chosen = draw_negatives(weights, weights, Draws(0))
    assert chosen.has_image.all() and chosen.has_text.all()
    assert (chosen.images != torch.arange(4)).all()


def test_rows_without_a_candidate_are_ignored() -> None:
    ids = torch.tensor([0, 0, 0])
    forbidden = ids[:, None] == ids[None, :]
    weights = negative_weights(torch.zeros(3, 3), forbidden, floor=1e-4)
    chosen = draw_negatives(weights, weights, Draws(0))
    assert not chosen.has_image.any() and not chosen.has_text.any()
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(3, dtype=torch.int64)
    expected = torch.nn.functional.cross_entropy(logits[:3], ones)
    torch.testing.assert_close(matching_loss(logits, chosen), expected)


def test_pairs_to_match() -> None:
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    captions, images = draw_negatives(weights, weights, Draws(0)).rows()
    assert captions.tolist() == [0, 1, 0, 1, 1, 0]
    assert images.tolist() == [0, 1, 1, 0, 0, 1]
