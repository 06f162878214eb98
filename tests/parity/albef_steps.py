"""Training loops of the golden cases of ALBEF's tasks with one term: losses, gradients, weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.models.albef.encoders import ALBEFEncoders
from itr.official.albef import official_state
from itr.training.optim import build_optimizer, lr_factor, set_learning_rates
from tests.parity.albef_build import gradients, official_names
from tests.parity.albef_training import check_state, optim_of, schedule_of
from tests.parity.harness import Case


def run_steps(
    case: Case,
    model: ALBEFEncoders,
    batch_at: Callable[[int], Batch],
    draws_at: Callable[[int], Draws] = lambda step: Draws(),
    inside: Callable[[Batch, Clock], None] = lambda batch, clock: None,
) -> None:
    """Train ``model`` as the case did and compare all it recorded.

    ``inside`` is called in the first step, after the momentum update (dropout is 0: computing
    something twice is the same).

    Attention takes torch's plain kernel, which orders its operations as the authors' code does.
    With the fused one, three gradients of a tenth of a millionth in nlvr2_train_steps differ by
    4e-9, twice their tolerance.
    """
    with sdpa_kernel(SDPBackend.MATH):
        _run_steps(case, model, batch_at, draws_at, inside)


def _run_steps(
    case: Case,
    model: ALBEFEncoders,
    batch_at: Callable[[int], Batch],
    draws_at: Callable[[int], Draws],
    inside: Callable[[Batch, Clock], None],
) -> None:
    check_groups(case, model)
    model.train()
    optim, scheduled = optim_of(case), schedule_of(case.data["hyper"]["schedular"])
    optimizer = build_optimizer(model, optim)
    for name in model.sleeping(Clock()):
        for key, parameter in model.named_parameters():
            if key == name or key.startswith(f"{name}."):
                parameter.requires_grad_(False)
    clock = Clock(total_epochs=case.data["hyper"]["schedular"]["epochs"])
    found: dict[str, list[float]] = {"loss": [], "alpha": [], "lr": []}
    step = 0
    for epoch, steps in enumerate(case.data["steps_per_epoch"]):
        clock.epoch, clock.batches_per_epoch = epoch, steps
        for clock.batch in range(steps):
            batch = batch_at(step)
            model.before_step(clock)
            if step == 0:
                inside(batch, clock)
            (loss,) = model(batch, clock, draws_at(step)).losses.values()
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                _check_gradients(case, model)
            factor = lr_factor(clock, scheduled)
            set_learning_rates(optimizer, factor)
            optimizer.step()
            model.after_step(clock)
            for key, value in (
                ("loss", float(loss.detach())),
                ("alpha", model.alpha(clock)),
                ("lr", optim.lr * factor),
            ):
                found[key].append(value)
            step += 1
            clock.updates = clock.forwards = step
    for key, values in found.items():
        if f"out.{key}" in case:
            dtype = case[f"out.{key}"].dtype
            case.check(f"out.{key}", torch.tensor(values, dtype=torch.float64).to(dtype))
    if "out.lr_end" in case:
        clock.epoch = len(case.data["steps_per_epoch"])
        end = torch.tensor(optim.lr * lr_factor(clock, scheduled), dtype=torch.float64)
        case.check("out.lr_end", end)
    if case.below("post."):
        check_state(case, model, moved=2 * optim.lr * step)


def _check_gradients(case: Case, model: ALBEFEncoders) -> None:
    found = gradients(model)
    for name in case.below("grad."):
        case.check(f"grad.{name}", found[name])
    without = set(case.data.get("without_gradient", ()))
    extra = found.keys() - case.below("grad.").keys()
    case.holds(f"gradients of {sorted(extra)}", not extra)
    case.holds("parameters without a gradient have none", not without & found.keys())


def check_groups(case: Case, model: ALBEFEncoders) -> None:
    """The optimizer's groups, and what is outside."""
    groups = case.data["param_groups"]
    decay = max(group["weight_decay"] for group in groups)
    names, outside = official_names(model), set(case.data["frozen"])
    ours = model.parameter_groups(groups[0]["lr"], decay)
    for found, expected in zip(ours, groups, strict=True):
        same = {names[name] for name in found.names} == set(expected["params"])
        case.holds(f"members of {found.name}", same)
        case.holds(f"decay of {found.name}", found.weight_decay == expected["weight_decay"])
        case.holds(f"rate of {found.name}", found.lr == expected["lr"])
    kept = outside & official_state(model).keys()
    case.holds("frozen", kept == outside and not kept & set(names.values()))
