"""Optimizer, learning-rate schedules and gradient clipping."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from itr.clock import Clock
from itr.errors import ConfigError
from itr.models.base import Model
from itr.options import configured, faults, option
from itr.training.parameters.layer_decay import layer_scales

KINDS = ("constant", "step", "cosine", "linear", "onecycle", "warmup_cosine", "epoch_cosine")
STAIR = 100  # updates per step of epoch_cosine's warm-up


@dataclass
@configured("optim/adamw.yaml", "optim.schedule")
class ScheduleConfig:
    """``step``: times ``decay`` at each milestone; ``cosine`` and ``linear``: to 0 at the end;
    ``onecycle``: from ``start_factor`` up to 1 during the first ``rise_share`` of all updates, then
    down to ``end_factor``, both along a cosine; ``constant``.

    ``unit`` says what milestones count: ``epoch``, ``update`` or ``progress`` (fraction of all
    updates). ``warmup_updates`` ramps linearly from 0 in front of any of them. ``cycle_beta1``
    (onecycle): the optimiser's first beta at the ends and at the peak; None leaves it alone.

    ``warmup_cosine``: a linear ramp over ``warmup_updates`` (or the share ``warmup_share`` of all
    updates), then ``cosine_cycles`` turns of a cosine (0.5: to 0) over the rest.
    ``floor_total_updates`` computes it for (all micro-batches) // (those of an update), as
    Multi-SEA's authors do, whose last update of an epoch has fewer: their schedule ends before
    training does, and goes on.

    ``epoch_cosine``: a cosine from 1 to ``end_factor`` that moves between epochs only; in the first
    epoch a warm-up from ``start_factor`` in stairs of 100 updates, ``warmup_updates`` long, which
    the end of that epoch cuts short (ALBEF's).
    """

    kind: str = option(choices=KINDS)
    milestones: list[float] = option()
    decay: float = option()
    unit: str = option(choices=("epoch", "update", "progress"))
    warmup_updates: int = option(at_least=0)
    rise_share: float = option(above=0, below=1)
    start_factor: float = option()
    end_factor: float = option()
    cycle_beta1: list[float] | None = option()
    warmup_share: float = option(at_least=0, below=1)
    cosine_cycles: float = option()
    floor_total_updates: bool = option()


@dataclass
@configured("optim/adamw.yaml", "optim")
class OptimConfig:
    """AdamW (decoupled weight decay) and the clipping of the global gradient norm."""

    name: str = option(choices=("adamw",))
    lr: float = option(at_least=0)
    weight_decay: float = option()
    betas: list[float] = option()
    eps: float = option()
    max_norm: float | None = option()
    layer_decay: float | None = option(above=0, at_most=1)
    schedule: ScheduleConfig = option()


def check_optim(config: OptimConfig) -> None:
    """Raises ConfigError for values that the optimizer or the schedule cannot use."""
    if messages := faults(config, "optim"):
        raise ConfigError("\n".join(messages))
    milestones = config.schedule.milestones
    if milestones != sorted(milestones):
        raise ConfigError(f"optim.schedule.milestones={milestones}: must be in ascending order")
    cycle = config.schedule.cycle_beta1
    if cycle is not None and (len(cycle) != 2 or config.schedule.kind != "onecycle"):
        raise ConfigError(
            f"optim.schedule.cycle_beta1={cycle}: expected null, or two numbers (at the ends and "
            "at the peak) with optim.schedule.kind=onecycle"
        )


def lr_factor(clock: Clock, schedule: ScheduleConfig) -> float:
    """Factor on every group's learning rate at ``clock``.

    A pure function of the clock, so that a resumed run continues exactly.
    """
    if schedule.kind == "warmup_cosine":
        return _warmup_cosine(clock, schedule)
    if schedule.kind == "epoch_cosine":
        return _epoch_cosine(clock, schedule)
    factor = 1.0
    if schedule.warmup_updates and clock.updates < schedule.warmup_updates:
        factor = clock.updates / schedule.warmup_updates
    if schedule.kind == "step":
        now = {"epoch": clock.epoch, "update": clock.updates, "progress": clock.progress}
        factor *= schedule.decay ** bisect_right(schedule.milestones, now[schedule.unit])
    elif schedule.kind == "cosine":
        factor *= 0.5 * (1.0 + math.cos(math.pi * clock.progress))
    elif schedule.kind == "linear":
        factor *= 1.0 - clock.progress
    elif schedule.kind == "onecycle":
        factor *= _one_cycle(clock, schedule, schedule.start_factor, 1.0, schedule.end_factor)
    return factor


def beta1_at(clock: Clock, schedule: ScheduleConfig) -> float | None:
    """AdamW's first beta at ``clock``, low while the rate is high; None: the schedule keeps it."""
    if schedule.cycle_beta1 is None:
        return None
    ends, peak = schedule.cycle_beta1
    return _one_cycle(clock, schedule, ends, peak, ends)


def _one_cycle(
    clock: Clock, schedule: ScheduleConfig, start: float, peak: float, end: float
) -> float:
    """Cosine from ``start`` to ``peak``, then to ``end`` (Smith 2018, as torch's OneCycleLR)."""
    top = schedule.rise_share * clock.total_updates - 1
    if clock.updates <= top and top > 0:
        return _cosine(start, peak, clock.updates / top)
    return _cosine(peak, end, (clock.updates - top) / (clock.total_updates - 1 - top))


def _warmup_cosine(clock: Clock, schedule: ScheduleConfig) -> float:
    """As get_cosine_schedule_with_warmup of transformers."""
    total = clock.total_updates
    if schedule.floor_total_updates:
        total = min(total, clock.total_epochs * clock.batches_per_epoch // clock.accumulate)
    warmup = schedule.warmup_updates or int(schedule.warmup_share * total)
    if clock.updates < warmup:
        return clock.updates / warmup
    turned = schedule.cosine_cycles * (clock.updates - warmup) / max(1, total - warmup)
    return max(0.0, _cosine(1.0, 0.0, 2.0 * turned))


def _epoch_cosine(clock: Clock, schedule: ScheduleConfig) -> float:
    """As in ALBEF's scripts, whose warm-up changes the rate after every hundredth update."""
    if clock.epoch:
        return _cosine(1.0, schedule.end_factor, min(1.0, clock.epoch / clock.total_epochs))
    stairs, climbed = schedule.warmup_updates / STAIR, max(0, clock.updates - 1) // STAIR
    if climbed >= stairs:
        return 1.0
    return schedule.start_factor + (1.0 - schedule.start_factor) * climbed / stairs


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2.0


def build_optimizer(model: Model, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameter groups of ``model``.

    Each group also carries ``name``, ``names`` of its parameters, and ``base_lr``. With
    ``layer_decay`` a group is divided by the factors on its rate, the largest one first. AdamW
    skips a parameter without gradient: no weight decay, no state.
    """
    parameters = dict(model.named_parameters())
    scales = layer_scales(model, config.layer_decay)
    groups = []
    for group in model.parameter_groups(config.lr, config.weight_decay):
        for scale, names in _by_scale(group.names, scales):
            groups.append(
                {
                    "params": [parameters.pop(name) for name in names],
                    "name": group.name,
                    "names": names,
                    "lr": group.lr * scale,
                    "base_lr": group.lr * scale,
                    "weight_decay": group.weight_decay,
                }
            )
    if parameters:
        raise ValueError(f"parameters in no group: {', '.join(sorted(parameters))}")
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=config.eps, fused=True)


def _by_scale(
    names: tuple[str, ...], scales: Mapping[str, float]
) -> list[tuple[float, tuple[str, ...]]]:
    """``names`` by their factors, the largest one first; 1 for a name without one."""
    found: dict[float, list[str]] = {}
    for name in names:
        found.setdefault(scales.get(name, 1.0), []).append(name)
    return [(scale, tuple(found[scale])) for scale in sorted(found, reverse=True)]


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of each group to its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def apply_schedule(
    optimizer: torch.optim.Optimizer, clock: Clock, schedule: ScheduleConfig
) -> None:
    """Set learning rates and, if the schedule changes it, the first beta for ``clock``."""
    set_learning_rates(optimizer, lr_factor(clock, schedule))
    beta1 = beta1_at(clock, schedule)
    if beta1 is not None:
        for group in optimizer.param_groups:
            group["betas"] = (beta1, group["betas"][1])


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clip the global L2 norm of all gradients; returns the norm before clipping, on the device."""
    with_gradient = [p for p in parameters if p.grad is not None]
    if max_norm is None:
        return torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    return torch.nn.utils.clip_grad_norm_(with_gradient, max_norm)


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter name>/<key>`` -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Restore the state that `state_tensors` returned."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        device = parameter.device
        optimizer.state[parameter][slot] = value.to(device, copy=True)
