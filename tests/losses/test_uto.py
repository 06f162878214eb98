"""UTO against double loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import Scores, pair_scores
from itr.losses.uto import UTO


def negatives(
    values: Tensor, own: list[int], skip: Tensor, mu: float, gamma: float, form: str
) -> float:
    total = 0.0
    for i, row in enumerate(values.tolist()):
        inside = 1.0
        for j, score in enumerate(row):
            if j == own[i]:
                inside += math.exp(-mu * gamma) if form == "zero" else 0.0
            elif not skip[i, j]:
                inside += math.exp(mu * (score - gamma))
        total += math.log(inside) / mu
    return total / len(values)


def reward(values: Tensor, own: list[int]) -> float:
    rows = values.tolist()
    return sum(math.log(1 + max(row[j], 0.0)) for row, j in zip(rows, own, strict=True)) / len(rows)


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize(("mu", "gamma"), [(90.0, 0.5), (5.0, 0.2), (1.0, 0.1)])
@pytest.mark.parametrize("form", ["zero", "drop"])
@pytest.mark.parametrize("mask_same_image", [False, True])
def test_the_batch_form(mu: float, gamma: float, form: str, mask_same_image: bool) -> None:
    torch.manual_seed(0)
    v, t, ids = unit(6, 4), unit(6, 4), torch.tensor([0, 1, 1, 2, 3, 1])
    loss = UTO(mu, gamma, form, mask_same_image)
    found = loss(pair_scores(v, t, ids), Clock(), Draws())
    values, own = v.double() @ t.double().t(), list(range(6))
    skip = (ids[:, None] == ids) & mask_same_image
    expected = (
        negatives(values, own, skip, mu, gamma, form)
        + negatives(values.t(), own, skip.t(), mu, gamma, form)
        - reward(values, own)  # shared by both directions: once
    )
    assert float(found) == pytest.approx(expected, abs=2e-6)
    dead = sum(values[i, i] <= 0 for i in range(6)) / 6
    assert float(loss.report["dead_positives"]) == pytest.approx(float(dead))


def queue_form(images: Tensor, texts: Tensor, repeats: Tensor) -> Scores:
    match = torch.cat([torch.ones(len(images), 1, dtype=torch.bool), repeats], dim=1)
    own = torch.zeros(len(images), dtype=torch.int64)
    return Scores(images, match, own, back=Scores(texts, match, own))


@pytest.mark.parametrize("mask_same_image", [False, True])
def test_the_queue_form_counts_both_positives(mask_same_image: bool) -> None:
    torch.manual_seed(0)
    i2t, t2i = 2 * torch.rand(5, 9) - 1, 2 * torch.rand(5, 9) - 1
    repeats = torch.rand(5, 8) < 0.3
    found = UTO(20.0, 0.3, "drop", mask_same_image)(queue_form(i2t, t2i, repeats), Clock(), Draws())
    skip, own = torch.nn.functional.pad(repeats, (1, 0)) & mask_same_image, [0] * 5
    expected = sum(
        negatives(values.double(), own, skip, 20.0, 0.3, "drop") - reward(values.double(), own)
        for values in (i2t, t2i)
    )
    assert float(found) == pytest.approx(expected, abs=2e-6)


def test_row_weights_multiply_rows() -> None:
    torch.manual_seed(0)
    scores = pair_scores(unit(4, 3), unit(4, 3), torch.arange(4))
    scores.weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    loss = UTO(10.0, 0.2)
    values = scores.values.double()
    expected = 0.0
    for i, weight in enumerate(scores.weight.tolist()):
        none = torch.zeros(1, 4, dtype=torch.bool)
        for table in (values, values.t()):
            expected += weight * negatives(table[i : i + 1], [i], none, 10.0, 0.2, "zero") / 4
        expected -= weight * reward(values[i : i + 1], [i]) / 4
    assert float(loss(scores, Clock(), Draws())) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("form", ["zero", "drop"])
def test_missing_negatives_and_extreme_scores_give_no_nan(form: str) -> None:
    """All captions of one image, and mu so large that the plain exponential overflows."""
    for values in (torch.ones(3, 3), -torch.ones(3, 3)):
        values = values.requires_grad_()
        scores = Scores(values, torch.ones(3, 3, dtype=torch.bool), torch.arange(3))
        for masked in (True, False):
            loss = UTO(1000.0, 0.1, form, mask_same_image=masked)(scores, Clock(), Draws())
            (gradient,) = torch.autograd.grad(loss, values)
            assert torch.isfinite(loss) and torch.isfinite(gradient).all()
            if masked:
                expected = -math.log(2) if values[0, 0] > 0 else 0.0
                assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_unknown_options_are_rejected() -> None:
    with pytest.raises(ConfigError, match="positive=keep"):
        UTO(positive="keep")
    with pytest.raises(ConfigError, match="mu=0"):
        UTO(mu=0.0)
