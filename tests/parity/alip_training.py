"""A training loop as ALIP's authors run it, which keeps everything that a golden case may ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.models.alip import ALIP
from itr.models.base import Terms
from itr.official.alip import NAMES
from itr.training.optim import apply_schedule, build_optimizer, clip_gradients
from tests.parity.alip_build import optim_of

MEANS = ("raw_caption", "image_raw", "image_caption")
Watch = dict[str, list[Any]]


def gradients(model: ALIP) -> dict[str, Tensor]:
    """By the authors' names."""
    return {
        str(NAMES.to_official(name)): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def weights(model: ALIP) -> dict[str, Tensor]:
    """By the authors' names."""
    return {str(NAMES.to_official(n)): p.detach().clone() for n, p in model.named_parameters()}


def watched(model: ALIP) -> tuple[Watch, Callable[[], None]]:
    """What every later forward pass of ``model`` computes inside, and how to stop looking."""
    seen: Watch = {}

    def gates(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        x, t, c = (value.detach() for value in inputs)
        for name, a, b in zip(MEANS, (t, x, x), (c, t, c), strict=True):
            mean = sum(float(p @ q) for p, q in zip(a, b, strict=True)) / len(a)
            seen.setdefault(f"mean_{name}", []).append(mean)
        for name, value in zip(MEANS, model.gates.means.tolist(), strict=True):
            seen.setdefault(f"H_{name}", []).append(value)
        for name, value in output._asdict().items():
            seen.setdefault(f"weight_{name}", []).append(value)

    def criterion(_module: nn.Module, inputs: tuple[Any, ...], output: Terms) -> None:
        seen.setdefault("logit_scale_exp", []).append(model.logit_scale.detach().exp())
        for name, value in output.losses.items():
            seen.setdefault(f"loss_{name}", []).append(value.detach())
        seen.setdefault("loss", []).append(sum(output.losses.values()).detach())  # type: ignore
        with torch.no_grad():
            batch: Batch = inputs[0]
            for name, value in (
                ("image_features", model.encode_images(batch).pooled),
                ("text_features_raw", model.encode_texts(batch).pooled),
                (
                    "text_features_caption",
                    model.encode_texts(Batch(tokens=batch.second_tokens)).pooled,
                ),
            ):
                seen.setdefault(name, []).append(value)

    handles = [
        model.gates.register_forward_hook(gates),
        model.register_forward_hook(criterion),
    ]
    return seen, lambda: [handle.remove() for handle in handles] and None  # type: ignore


def train(
    model: ALIP,
    call: Callable[..., Terms],
    batches: list[Batch],
    hyper: Mapping[str, Any],
) -> dict[str, Any]:
    """Train on ``batches``, one update every ``gradient_acc`` of them, the first at once; losses
    are summed, and schedule and clamp move with every batch. ``call`` is ``model`` or a wrapper.
    """
    config, every = optim_of(hyper), hyper.get("gradient_acc", 1)
    optimizer = build_optimizer(model.train(), config)
    seen, stop = watched(model)
    kept: dict[str, Any] = {"seen": seen, "weights": [], "gradients": [], "update_steps": []}
    for key in ("lr_used", "beta1_used", "grad_norm", "logit_scale_after"):
        seen[key] = []
    for step, batch in enumerate(batches):
        clock = Clock(updates=step, total_updates=hyper["schedule_total_steps"])
        model.before_step(clock)
        losses = call(batch, clock, Draws()).losses
        torch.stack(list(losses.values())).sum().backward()
        if step % every == 0:
            apply_schedule(optimizer, clock, config.schedule)
            seen["lr_used"].append(optimizer.param_groups[0]["lr"])
            seen["beta1_used"].append(optimizer.param_groups[0]["betas"][0])
            kept["gradients"].append(gradients(model))
            kept["update_steps"].append(step)
            seen["grad_norm"].append(clip_gradients(model.parameters(), config.max_norm))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.before_step(clock)  # the clamp of the next batch
        seen["logit_scale_after"].append(model.logit_scale.detach().clone())
        kept["weights"].append(weights(model))
    stop()
    return kept


def stacked(values: list[Any]) -> Tensor:
    """The values of all steps, in one tensor."""
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    return torch.tensor(values, dtype=torch.float64)
