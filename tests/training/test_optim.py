"""Schedules are pure functions of the clock; groups cover every parameter; state round-trips."""

from __future__ import annotations

import math

import pytest
import torch

from itr.clock import Clock
from itr.errors import ConfigError
from itr.training.optim import (
    OptimConfig,
    ScheduleConfig,
    apply_schedule,
    build_optimizer,
    check_optim,
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


@pytest.mark.parametrize(("total", "rise"), [(40, 0.1), (1000, 0.3), (7, 0.15)])
def test_one_cycle_is_torchs(total: int, rise: float) -> None:
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, 2e-3, total, pct_start=rise)
    ours = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-3, betas=(0.9, 0.98))
    ours.param_groups[0]["base_lr"] = 2e-3
    schedule = ScheduleConfig(kind="onecycle", rise_share=rise, cycle_beta1=[0.95, 0.85])
    for update in range(total):
        apply_schedule(ours, Clock(updates=update, total_updates=total), schedule)
        a, b = ours.param_groups[0], theirs.param_groups[0]
        assert a["lr"] == pytest.approx(b["lr"], rel=1e-9)
        assert a["betas"] == pytest.approx(b["betas"], rel=1e-9)
        theirs.step()
        scheduler.step()


def test_a_schedule_without_a_say_leaves_beta_alone() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.7, 0.98))
    optimizer.param_groups[0]["base_lr"] = 1e-3
    schedule = ScheduleConfig(kind="onecycle")
    apply_schedule(optimizer, Clock(updates=1, total_updates=9), schedule)
    assert optimizer.param_groups[0]["betas"] == (0.7, 0.98)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            ScheduleConfig(kind="onecycle", rise_share=1.0),
            "optim.schedule.rise_share=1",
        ),
        (ScheduleConfig(kind="onecycle", cycle_beta1=[0.9]), "two numbers"),
        (ScheduleConfig(kind="cosine", cycle_beta1=[0.95, 0.85]), "optim.schedule.kind=onecycle"),
    ],
)
def test_bad_one_cycle(schedule: ScheduleConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_optim(OptimConfig(schedule=schedule))


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
