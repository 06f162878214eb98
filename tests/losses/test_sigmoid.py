"""The pairwise sigmoid loss against a naive double loop over pairs."""

from __future__ import annotations

import math

import pytest
import torch

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import Scores, pair_scores
from itr.losses.sigmoid import Sigmoid


def naive(scores: Scores, scale: float, bias: float, by_column: bool = False) -> float:
    total = 0.0
    for i, row in enumerate(scores.values.double().tolist()):
        for j, similarity in enumerate(row):
            sign = 1.0 if bool(scores.match[i, j]) else -1.0
            cost = math.log1p(math.exp(-sign * (scale * similarity + bias)))
            weights = scores.weight
            total += cost * (1.0 if weights is None else float(weights[j if by_column else i]))
    return total / len(scores.values)


def square(ids: list[int], seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, len(ids), 6, generator=generator)
    return pair_scores(
        x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True), torch.tensor(ids)
    )


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [0, 0, 1, 0], [4, 4], [9]])
def test_every_pair_counts_once(ids: list[int]) -> None:
    scores = square(ids)
    found = float(Sigmoid()(scores, Clock(), Draws()))
    assert found == pytest.approx(naive(scores, 10.0, -10.0), rel=1e-5)


def test_weights_apply_to_rows_and_columns() -> None:
    scores = square([0, 1, 2, 3, 4])
    scores.weight = torch.tensor([0.0, 0.3, 1.0, 1.5, 2.0])
    rows, columns = (naive(scores, 4.0, -2.0, by_column=way) for way in (False, True))
    found = float(Sigmoid(temperature=0.25, bias=-2.0)(scores, Clock(), Draws()))
    assert found == pytest.approx((rows + columns) / 2, rel=1e-5)


def test_different_candidates_per_direction_are_averaged() -> None:
    generator = torch.Generator().manual_seed(1)
    sides = []
    for width in (7, 5):
        match = torch.zeros(3, width, dtype=torch.bool)
        match[torch.arange(3), torch.arange(3)] = True
        sides.append(Scores(torch.randn(3, width, generator=generator), match, torch.arange(3)))
    sides[0].back = sides[1]
    expected = (naive(sides[0], 10.0, -10.0) + naive(sides[1], 10.0, -10.0)) / 2
    assert float(Sigmoid()(sides[0], Clock(), Draws())) == pytest.approx(expected, rel=1e-5)


def test_scale_and_bias_are_learned_and_reported() -> None:
    loss = Sigmoid()
    loss(square([0, 1, 2]), Clock(), Draws()).backward()
    assert sorted(name for name, _ in loss.named_parameters()) == ["bias", "log_scale"]
    assert all(p.grad is not None and p.grad != 0 for p in loss.parameters())
    assert float(loss.report["scale"]) == pytest.approx(10.0)
    assert float(loss.report["bias"]) == -10.0
    fixed = Sigmoid(learnable=False)
    assert not list(fixed.parameters()) and not fixed.state_dict()


def test_use_model_scale() -> None:
    scores = square([0, 1, 2])
    scores.scale = torch.tensor(5.0)
    asked, own = Sigmoid(use_model_scale=True), Sigmoid()
    assert float(asked(scores, Clock(), Draws())) == pytest.approx(
        naive(scores, 5.0, -10.0), rel=1e-5
    )
    assert float(own(scores, Clock(), Draws())) == pytest.approx(
        naive(scores, 10.0, -10.0), rel=1e-5
    )


def test_extreme_scores_stay_finite() -> None:
    scores = square([0, 1])
    scores.values = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    found = Sigmoid()(scores, Clock(), Draws())
    found.backward()
    assert torch.isfinite(found) and torch.isfinite(scores.values.grad).all()


def test_bad_temperature() -> None:
    with pytest.raises(ConfigError, match="temperature=-1"):
        Sigmoid(temperature=-1)


def test_a_trained_scale_and_bias_replace_the_losses_own() -> None:
    scores, loss = square([0, 1, 1, 2]), Sigmoid()
    scores.scale, scores.bias = (torch.tensor(v, requires_grad=True) for v in (117.0, -12.9))
    found = loss(scores, Clock(), Draws())
    assert float(found.detach()) == pytest.approx(naive(scores, 117.0, -12.9), rel=1e-5)
    found.backward()
    assert scores.scale.grad is not None and scores.bias.grad is not None
    assert all(parameter.grad is None for parameter in loss.parameters())
