"""InfoNCE against a plain double loop."""

from __future__ import annotations

import math

import pytest
import torch

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.infonce import InfoNCE
from itr.losses.score import Scores


def one_way(side: Scores, scale: float) -> float:
    total = 0.0
    for i in range(len(side.values)):
        row = (side.values[i].double() * scale).tolist()
        denominator = math.log(sum(math.exp(value) for value in row))
        if side.soft is not None:
            target = side.soft[i].tolist()
        else:
            matches = side.match[i].tolist()
            target = [m / sum(matches) for m in matches]
        cost = -sum(t * (value - denominator) for t, value in zip(target, row, strict=True))
        total += cost * (1.0 if side.weight is None else float(side.weight[i]))
    return total / len(side.values)


def scores(rows: int = 4, columns: int | None = None, soft: bool = False) -> Scores:
    ids = torch.arange(rows) % 3
    width = columns or rows
    match = ids[:, None] == torch.cat([ids, torch.full((width - rows,), 7)])
    return Scores(
        torch.rand(rows, width) * 2 - 1,
        match,
        torch.arange(rows),
        soft=torch.rand(rows, width).softmax(dim=1) if soft else None,
        weight=torch.rand(rows) if soft else None,
    )


@pytest.mark.parametrize("soft", [False, True])
def test_square_scores_equal_the_loop(soft: bool):
    given = scores(soft=soft)
    expected = (one_way(given, 1 / 0.1) + one_way(given.reverse(), 1 / 0.1)) / 2
    assert float(InfoNCE(0.1)(given, Clock(), Draws())) == pytest.approx(expected, rel=1e-5)


def test_queues_of_two_lengths_equal_the_loop():
    given, given.back = (pair := (scores(4, 9), scores(4, 6)))[0], pair[1]
    expected = (one_way(given, 1 / 0.07) + one_way(given.back, 1 / 0.07)) / 2
    assert float(InfoNCE()(given, Clock(), Draws())) == pytest.approx(expected, rel=1e-5)


def test_the_models_scale_comes_first_unless_switched_off():
    given = scores()
    given.scale = torch.tensor(3.0)
    own, models = InfoNCE(0.5, use_model_scale=False), InfoNCE(0.5)
    for loss, scale in ((own, 2.0), (models, 3.0)):
        expected = (one_way(given, scale) + one_way(given.reverse(), scale)) / 2
        assert float(loss(given, Clock(), Draws())) == pytest.approx(expected, rel=1e-5)
        assert loss.report["scale"] == pytest.approx(scale)


def test_a_learnable_scale_gets_gradient_and_has_a_ceiling():
    loss = InfoNCE(0.07, learnable=True)
    assert [name for name, _ in loss.named_parameters()] == ["log_scale"]
    loss(scores(), Clock(), Draws()).backward()
    assert loss.log_scale.grad is not None and loss.log_scale.grad != 0
    high = InfoNCE(0.001, learnable=True)
    high(scores(), Clock(), Draws())
    assert high.report["scale"] == 100.0
    assert not list(InfoNCE().parameters()) and not InfoNCE().state_dict()


def test_temperature_must_be_positive():
    with pytest.raises(ConfigError, match="temperature=0"):
        InfoNCE(0)
