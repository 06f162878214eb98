"""Schedules are pure functions of the clock; groups cover every parameter; state round-trips."""

from __future__ import annotations

import math

import pytest
import torch

from itr.clock import Clock
from itr.training.optim import (
    OptimConfig,
    ScheduleConfig,
    build_optimizer,
    clip_gradients,
    load_state_tensors,
    lr_factor,
    state_tensors,
)


@pytest.mark.parametrize(
    ("unit", "clock", "expected"),
    [
        ("epoch", Clock(epoch=14), 1.0),
        ("epoch", Clock(epoch=15), 0.1),
        ("epoch", Clock(epoch=25), 0.01),
        ("update", Clock(epoch=99, updates=14), 1.0),
        ("update", Clock(updates=25), 0.01),
    ],
)
def test_step_schedule(unit: str, clock: Clock, expected: float) -> None:
    schedule = ScheduleConfig(kind="step", milestones=[15, 25], decay=0.1, unit=unit)
    assert lr_factor(clock, schedule) == pytest.approx(expected, rel=1e-12)


def test_progress_counts_all_updates() -> None:
    schedule = ScheduleConfig(kind="step", milestones=[2 / 3], unit="progress")
    factors = [lr_factor(Clock(updates=u, total_updates=660), schedule) for u in (439, 440, 659)]
    assert factors == pytest.approx([1.0, 0.1, 0.1])


def test_cosine_and_warmup() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup_updates=10)
    at = lambda u: lr_factor(Clock(updates=u, total_updates=100), schedule)  # noqa: E731
    assert at(0) == 0.0
    assert at(5) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.05)))
    assert at(50) == pytest.approx(0.5)
    assert at(100) == pytest.approx(0.0)


def test_clipping_returns_the_norm_before_it() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4))]
    parameters[0].grad = torch.full((3,), 3.0)
    norm = clip_gradients(parameters, 2.0)
    assert float(norm) == pytest.approx(math.sqrt(27))
    assert float(parameters[0].grad.norm()) == pytest.approx(2.0, rel=1e-5)
    assert float(clip_gradients(parameters, None)) == pytest.approx(2.0, rel=1e-5)


def test_state_round_trip_continues_identically() -> None:
    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return Toy()

    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def parameter_groups(self, lr: float, weight_decay: float) -> list:
            from itr.models.base import ParameterGroup

            return [ParameterGroup("all", ("layer.weight", "layer.bias"), lr, weight_decay)]

    def steps(net: torch.nn.Module, optimizer: torch.optim.Optimizer, n: int) -> None:
        for i in range(n):
            net.layer.weight.grad = torch.full((2, 4), 0.1 * (i + 1))
            net.layer.bias.grad = torch.full((2,), -0.2)
            optimizer.step()

    straight = model()
    steps(straight, build_optimizer(straight, OptimConfig()), 3)  # type: ignore[arg-type]
    first = model()
    optimizer = build_optimizer(first, OptimConfig())  # type: ignore[arg-type]
    steps(first, optimizer, 3)
    assert torch.equal(first.layer.weight, straight.layer.weight)
    second = model()
    second.load_state_dict(first.state_dict())
    again = build_optimizer(second, OptimConfig())  # type: ignore[arg-type]
    saved = {name: value.clone() for name, value in state_tensors(first, optimizer).items()}
    load_state_tensors(second, again, saved)
    steps(first, optimizer, 2)
    steps(second, again, 2)
    assert torch.equal(first.layer.weight, second.layer.weight)


def test_a_parameter_in_no_group_is_an_error() -> None:
    class Forgetful(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def parameter_groups(self, lr: float, weight_decay: float) -> list:
            return []

    with pytest.raises(ValueError, match=r"layer\.weight"):
        build_optimizer(Forgetful(), OptimConfig())  # type: ignore[arg-type]
