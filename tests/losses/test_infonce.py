"""InfoNCE against a second, naive implementation: loops over queries, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.infonce import InfoNCE
from itr.losses.score import Scores, pair_scores


def naive(scores: Scores, scale: float) -> float:
    """One direction, query by query."""
    total = 0.0
    for query, row in enumerate(scores.values.double().tolist()):
        logits = [scale * value for value in row]
        top = max(logits)
        log_sum = top + math.log(sum(math.exp(value - top) for value in logits))
        if scores.soft is not None:
            target = scores.soft[query].tolist()
        else:
            hits = scores.match[query].tolist()
            target = [hit / sum(hits) for hit in hits]
        cost = sum(t * (log_sum - x) for t, x in zip(target, logits, strict=True))
        total += cost * (1.0 if scores.weight is None else float(scores.weight[query]))
    return total / len(scores.values)


def both(scores: Scores, scale: float) -> float:
    return (naive(scores, scale) + naive(scores.reverse(), scale)) / 2


def value(loss: InfoNCE, scores: Scores) -> Tensor:
    return loss(scores, Clock(), Draws())


def square(ids: list[int], seed: int = 0, known: bool = True) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        torch.nn.functional.normalize(torch.randn(len(ids), 5, generator=generator), dim=1)
        for _ in range(2)
    )
    image_id = torch.tensor(ids)
    pairs = int((image_id[:, None] == image_id).sum())
    return pair_scores(x, y, image_id, pairs if known else None)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0], [7, 7, 7], [3]])
@pytest.mark.parametrize("weighted", [True, False])
def test_hard_targets(ids: list[int], known: bool, weighted: bool) -> None:
    scores = square(ids, known=known)
    if weighted:
        scores.weight = torch.linspace(0.1, 1.7, len(ids))
    assert float(value(InfoNCE(temperature=0.05), scores)) == pytest.approx(
        both(scores, 20.0), rel=1e-5, abs=1e-6
    )


def test_soft_targets_with_a_queue() -> None:
    generator = torch.Generator().manual_seed(3)

    def side() -> Scores:
        match = torch.zeros(4, 9, dtype=torch.bool)
        match[torch.arange(4), torch.arange(4)] = True
        return Scores(
            torch.randn(4, 9, generator=generator),
            match,
            torch.arange(4),
            soft=torch.randn(4, 9, generator=generator).softmax(dim=1),
        )

    scores = side()
    scores.back = side()
    found = float(value(InfoNCE(temperature=0.5), scores))
    assert found == pytest.approx(both(scores, 2.0), rel=1e-5)
    scores.soft, scores.back.soft = None, None
    hard = float(value(InfoNCE(temperature=0.5), scores))
    assert hard == pytest.approx(both(scores, 2.0), rel=1e-5)
    scores.n_match = scores.back.n_match = 4  # one match each: no matrix of targets is made
    assert float(value(InfoNCE(temperature=0.5), scores)) == pytest.approx(hard, rel=1e-6)


def test_gradients_of_index_and_dense_targets_agree() -> None:
    grads = []
    for known in (True, False):
        scores = square([0, 1, 2, 3], known=known)
        scores.values = scores.values.detach().requires_grad_()
        scores.weight = torch.tensor([0.0, 0.5, 1.0, 2.0])
        value(InfoNCE(), scores).backward()
        grads.append(scores.values.grad)
    torch.testing.assert_close(*grads)


def test_the_models_scale_takes_precedence_unless_disabled() -> None:
    scores = square([0, 1, 2])
    scores.scale = torch.tensor(3.0)
    assert float(value(InfoNCE(), scores)) == pytest.approx(both(scores, 3.0), rel=1e-5)
    own = InfoNCE(temperature=0.1, use_model_scale=False)
    assert float(value(own, scores)) == pytest.approx(both(scores, 10.0), rel=1e-5)
    assert float(own.report["scale"]) == pytest.approx(10.0)


def test_a_learnable_scale_is_clamped() -> None:
    loss, scores = InfoNCE(temperature=0.07, learnable=True), square([0, 1, 2])
    value(loss, scores).backward()
    assert [name for name, _ in loss.named_parameters()] == ["log_scale"]
    assert loss.log_scale.grad is not None and loss.log_scale.grad.abs() > 0
    with torch.no_grad():
        loss.log_scale.fill_(10.0)
    assert float(value(loss, scores).detach()) == pytest.approx(both(scores, 100.0), rel=1e-5)


def test_a_batch_of_one_image_gives_no_nan() -> None:
    scores = square([5, 5, 5, 5])
    scores.values.requires_grad_()
    found = value(InfoNCE(), scores)
    found.backward()
    assert torch.isfinite(found) and torch.isfinite(scores.values.grad).all()


def test_bad_temperature() -> None:
    with pytest.raises(ConfigError, match="temperature=0"):
        InfoNCE(temperature=0)
