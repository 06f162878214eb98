"""Triplet losses against plain double loops, on square scores and on scores with a queue."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itr.clock import Clock
from itr.draws import Draws, ReplayedDraws
from itr.errors import ConfigError
from itr.instantiate import build
from itr.losses.score import Scores, pair_scores
from itr.losses.triplet import DistanceWeightedTriplet, Triplet, matching_pairs
from tests import naive_hrem as naive


def unit(*shape: int, spread: float = 1.0) -> Tensor:
    rows = torch.randn(*shape) * spread + torch.ones(shape[-1]) * (1 - spread)
    return torch.nn.functional.normalize(rows, dim=-1)


def square(ids: list[int], spread: float = 1.0, width: int = 6) -> Scores:
    rows = len(ids)
    queries, candidates = unit(rows, width, spread=spread), unit(rows, width, spread=spread)
    image_id = torch.tensor(ids)
    pairs = int((image_id[:, None] == image_id).sum())
    return pair_scores(queries.requires_grad_(), candidates, image_id, pairs)


def queued(ids: list[int], queues: tuple[int, int], spread: float = 0.6) -> Scores:
    """Batch and queue in both directions, the queues of two lengths."""
    sides = []
    for length in queues:
        others = torch.tensor([*ids, *torch.randint(0, 5, (length,)).tolist()])
        values = unit(len(ids), 6, spread=spread) @ unit(len(others), 6, spread=spread).t()
        match = torch.tensor(ids)[:, None] == others
        sides.append(Scores(values, match, torch.arange(len(ids)), n_match=int(match.sum())))
    sides[0].back = sides[1]
    return sides[0]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_matching_pairs_equal_nonzero(rows: int, columns: int, seed: int):
    match = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.4
    expected = match.nonzero(as_tuple=True)
    found = matching_pairs(match, int(match.sum()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("spread", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("cutoff", [1.2, 1.7, 1.9])
def test_sampling_weights_equal_the_formula(spread: float, cutoff: float):
    torch.manual_seed(0)  # a sum at the limit of float32 would be counted either way
    scores = square([0, 1, 1, 2, 3, 4, 5], spread)
    scores.values.data[0, 3] = 1.0000001
    scores.values.data[1, 5], scores.values.data[2, 6] = -1.0, 1.0
    loss = DistanceWeightedTriplet(cutoff=cutoff)
    weight, exhausted = loss.sampling_weights(scores.values, scores.match)
    expected = naive.sampling_weights(scores.values, scores.match, cutoff)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-3, atol=1e-3)
    # Below the smallest float32 (1.4e-45), divided by 1e-20, nothing is left to draw from.
    assert torch.equal(exhausted, expected.sum(dim=1) < 1.4e-25)


@pytest.mark.parametrize("scores", [square([0, 1, 1, 2, 0]), queued([0, 1, 1, 2], (7, 3))])
def test_distance_weighted_loss_equals_the_loop(scores: Scores):
    loss = DistanceWeightedTriplet(cutoff=1.99)
    drawn, expected = [], torch.zeros(())
    for side in (scores, scores.reverse()):
        rows = side.match.nonzero()[:, 0]
        free = (~side.match).float()
        drawn.append(torch.multinomial(free[rows], 1)[:, 0])
        expected = expected + naive.triplet(side.values, side.match, drawn[-1])
    torch.testing.assert_close(loss(scores, Clock(), ReplayedDraws(drawn)), expected)


def test_rows_are_weighted():
    scores = square([0, 1, 2, 3])
    drawn = [torch.tensor([1, 0, 0, 0])] * 2
    loss = DistanceWeightedTriplet(cutoff=1.99)
    per_row = []
    for row in range(4):
        scores.weight = torch.eye(4)[row]
        per_row.append(loss(scores, Clock(), ReplayedDraws(drawn)))
    scores.weight = torch.tensor([1.0, 2.0, 0.0, 5.0])
    expected = per_row[0] + 2 * per_row[1] + 5 * per_row[3]
    torch.testing.assert_close(loss(scores, Clock(), ReplayedDraws(drawn)), expected)


def exhausted_scores() -> Scores:
    """Row 1 has no negative within the cut-off, nor has column 2."""
    values = torch.full((4, 4), 0.3) + 0.6 * torch.eye(4)
    values[1, [0, 2, 3]] = -0.5
    values[[0, 1, 3], 2] = -0.5
    match = torch.eye(4, dtype=torch.bool)
    return Scores(values.requires_grad_(), match, torch.arange(4), n_match=4)


def test_exhausted_anchors_are_dropped_or_zero_their_direction():
    scores, draws = exhausted_scores(), Draws(0)
    dropping = DistanceWeightedTriplet(margin=1.0)
    kept = dropping(scores, Clock(), draws)
    # Per direction 3 anchors remain, each at margin 1 - 0.9 + 0.3.
    torch.testing.assert_close(kept, torch.tensor(6 * (1.0 - 0.9 + 0.3)))
    assert dropping.report["exhausted_anchors"] == 2
    zeroing = DistanceWeightedTriplet(margin=1.0, exhausted="zero")
    assert zeroing(scores, Clock(), draws) == 0.0
    assert zeroing.report["exhausted_anchors"] == 2
    (gradient,) = torch.autograd.grad(kept, scores.values)
    assert gradient.isfinite().all() and not gradient[1, [0, 2, 3]].any()


def test_negatives_are_drawn_in_proportion_to_their_weights():
    scores = square([0, 1, 2, 3, 4], spread=0.2)
    loss, draws, n = DistanceWeightedTriplet(), Draws(5), 3000
    weight, _ = loss.sampling_weights(scores.values, scores.match)
    drawn = draws.categorical(weight.repeat(n, 1)).view(n, 5)
    for row in range(5):
        share = torch.bincount(drawn[:, row], minlength=5) / n
        sigma = (weight[row] * (1 - weight[row]) / n).sqrt()
        assert ((share - weight[row]).abs() <= 5 * sigma + 1e-6).all()


def uncounted(scores: Scores) -> Scores:
    """The same scores with an unknown number of matches."""
    back = scores.back and dataclasses.replace(scores.back, n_match=None)
    return dataclasses.replace(scores, n_match=None, back=back)


@pytest.mark.parametrize("scores", [square([0, 1, 1, 2, 0], 0.3), queued([0, 1, 1, 2], (7, 3))])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_unknown_number_of_matches_gives_the_same_expected_loss(scores: Scores, weighted: bool):
    """Against the expectation over negatives, pair by pair."""
    scores = uncounted(scores)
    if weighted:
        scores.weight = torch.linspace(0.5, 2.0, len(scores.values))
    loss, draws, expected = DistanceWeightedTriplet(margin=0.7, dimension=4), Draws(3), 0.0
    for side in (scores, scores.reverse()):
        chance, _ = loss.sampling_weights(side.values, side.match)
        for i, j in side.match.nonzero().tolist():
            cost = (side.values[i] - side.values[i, j] + 0.7).clamp(min=0)
            row = 1.0 if side.weight is None else float(side.weight[i])
            expected += row * float((chance[i] * cost).sum().detach())
    found = torch.stack([loss(scores, Clock(), draws) for _ in range(600)]).detach()
    assert abs(found.mean() - expected) <= 5 * found.std() / 600**0.5 + 1e-4


def test_an_unknown_number_of_matches_with_exhausted_anchors():
    scores = uncounted(exhausted_scores())
    kept = DistanceWeightedTriplet(margin=1.0)(scores, Clock(), Draws(0))
    torch.testing.assert_close(kept, torch.tensor(6 * (1.0 - 0.9 + 0.3)))
    zeroing = DistanceWeightedTriplet(margin=1.0, exhausted="zero")
    assert zeroing(scores, Clock(), Draws(0)) == 0.0


def test_columns_are_drawn_in_proportion_to_row_weights():
    weight = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0], [0.0] * 5 + [1e-30], [1.0] * 6])
    drawn = torch.stack([Draws(seed).columns(weight) for seed in range(500)])
    share = torch.nn.functional.one_hot(drawn, 6).float().mean(dim=(0, 2))
    expected = weight / weight.sum(dim=1, keepdim=True)
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / 3000).sqrt()).all()


def hinge(scores: Scores, margin: float, hardest: bool, mask_same_image: bool) -> float:
    """Both directions by double loop."""
    total = 0.0
    for side in (scores, scores.reverse()):
        for i, own in enumerate(side.own.tolist()):
            costs = [0.0]
            for j in range(side.values.shape[1]):
                if j == own or (mask_same_image and side.match[i, j]):
                    continue
                values = side.values.detach()
                costs.append(max(0.0, margin + float(values[i, j] - values[i, own])))
            weight = 1.0 if side.weight is None else float(side.weight[i])
            total += weight * (max(costs) if hardest else sum(costs))
    return total


@pytest.mark.parametrize("scores", [square([0, 1, 1, 2, 0], 0.5), queued([0, 1, 1], (6, 2))])
@pytest.mark.parametrize("mask_same_image", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_hinge_equals_the_double_loop(scores: Scores, mask_same_image: bool, weighted: bool):
    for side in (scores, scores.back):
        if side is not None:
            side.weight = torch.rand(len(side.values)) if weighted else None
    for negatives, epoch, hardest in (
        ("hardest", 0, True),
        ("sum", 9, False),
        ("warmup", 1, False),
        ("warmup", 2, True),
    ):
        loss = Triplet(0.4, negatives, warmup_epochs=2, mask_same_image=mask_same_image)
        found = loss(scores, Clock(epoch=epoch), Draws())
        assert float(found.detach()) == pytest.approx(
            hinge(scores, 0.4, hardest, mask_same_image), rel=1e-5
        )


def test_the_positive_can_be_in_any_column():
    values, order = torch.randn(5, 5), torch.tensor([3, 0, 4, 1, 2])
    straight = Scores(values, torch.eye(5, dtype=torch.bool), torch.arange(5))
    mixed = Scores(values[:, order.argsort()], straight.match[:, order.argsort()], order)
    loss = Triplet(negatives="sum")
    torch.testing.assert_close(loss(straight, Clock(), Draws()), loss(mixed, Clock(), Draws()))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (
            {"_target_": "itr.losses.triplet.Triplet", "negatives": "hard"},
            "negatives=hard.*hardest, sum, warmup",
        ),
        (
            {"_target_": "itr.losses.triplet.DistanceWeightedTriplet", "exhausted": "x"},
            "exhausted=x.*drop, zero",
        ),
        ({"_target_": "itr.losses.triplet.DistanceWeightedTriplet", "cutoff": 0.4}, "cutoff=0.4"),
        ({"_target_": "itr.losses.triplet.Triplet", "marign": 0.4}, "nearest: margin"),
        ({"_target_": "itr.losses.triplet.Triplet", "margin": "wide"}, "margin"),
    ],
)
def test_options_are_checked(node: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        build(node, "loss.slots.base")
