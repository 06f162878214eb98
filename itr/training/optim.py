"""Optimiser, schedule and clipping: the groups come from the model, the numbers from `optim`."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from itr.clock import Clock
from itr.errors import ConfigError
from itr.models.base import RetrievalModel


@dataclass
class ScheduleConfig:
    """``step``: times ``decay`` at each milestone; ``cosine``: to 0 at the end; ``constant``.

    ``unit`` says what milestones count: ``epoch``, ``update`` or ``progress`` (fraction of all
    updates). ``warmup_updates`` ramps linearly from 0 in front of any of them.
    """

    kind: str = "step"
    milestones: list[float] = field(default_factory=lambda: [15.0, 25.0])
    decay: float = 0.1
    unit: str = "epoch"
    warmup_updates: int = 0


@dataclass
class OptimConfig:
    """AdamW (decoupled weight decay) and the clipping of the global gradient norm."""

    name: str = "adamw"
    lr: float = 5e-4
    weight_decay: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    clip_norm: float | None = 2.0
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


def check_optim(config: OptimConfig) -> None:
    """Raises ConfigError for options that no code below knows."""
    for key, value, known in (
        ("optim.name", config.name, ("adamw",)),
        ("optim.schedule.kind", config.schedule.kind, ("constant", "step", "cosine")),
        ("optim.schedule.unit", config.schedule.unit, ("epoch", "update", "progress")),
    ):
        if value not in known:
            raise ConfigError(f"{key}: '{value}' is unknown; expected one of {', '.join(known)}")
    milestones = config.schedule.milestones
    if milestones != sorted(milestones):
        raise ConfigError(f"optim.schedule.milestones: {milestones} must be in rising order")


def lr_factor(clock: Clock, schedule: ScheduleConfig) -> float:
    """Factor on every group's learning rate at ``clock``: a pure function, so resume is exact."""
    factor = 1.0
    if schedule.warmup_updates and clock.updates < schedule.warmup_updates:
        factor = clock.updates / schedule.warmup_updates
    if schedule.kind == "step":
        now = {"epoch": clock.epoch, "update": clock.updates, "progress": clock.progress}
        factor *= schedule.decay ** bisect_right(schedule.milestones, now[schedule.unit])
    elif schedule.kind == "cosine":
        factor *= 0.5 * (1.0 + math.cos(math.pi * clock.progress))
    return factor


def build_optimizer(model: RetrievalModel, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the model's own groups; each group carries ``name``, ``names`` and ``base_lr``.

    A parameter that never gets a gradient is skipped by AdamW: no decay, no state.
    """
    parameters = dict(model.named_parameters())
    groups = []
    for group in model.parameter_groups(config.lr, config.weight_decay):
        groups.append(
            {
                "params": [parameters.pop(name) for name in group.names],
                "name": group.name,
                "names": group.names,
                "lr": group.lr,
                "base_lr": group.lr,
                "weight_decay": group.weight_decay,
            }
        )
    if parameters:
        raise ValueError(f"parameters in no group: {', '.join(sorted(parameters))}")
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=config.eps, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate = its own rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clip the global L2 norm of all gradients; the norm before clipping, still on the device."""
    with_gradient = [p for p in parameters if p.grad is not None]
    if max_norm is None:
        return torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    return torch.nn.utils.clip_grad_norm_(with_gradient, max_norm)


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as ``<parameter name>/<key>`` -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put back what `state_tensors` gave, exactly as it was."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        device = parameter.device
        optimizer.state[parameter][slot] = value.to(device)
