"""Decides which losses are compatible with which model slots.

A loss is allowed, allowed with hard matches (it ignores the model's soft targets), or refused.
``itr losses`` prints the whole table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from itr.losses.score import ScoreLoss
from itr.models.base import Model

Kind = Literal["allowed", "hard", "refused"]


@dataclass(frozen=True)
class Verdict:
    """The compatibility of a loss with a slot; ``reason`` explains anything but plain allowed."""

    kind: Kind
    reason: str = ""


def judge(cls: type[Model], config: Any, slot: str, loss: ScoreLoss) -> Verdict:
    """The compatibility of ``loss`` with ``slot`` of a ``cls`` with configuration ``config``."""
    scores, name = cls.slot_scores(config, slot), type(loss).__name__
    if loss.needs_cosine and not scores.cosine:
        remedy = f"pass {scores.remedy}, or" if scores.remedy else "pass"
        return Verdict(
            "refused",
            f"{name} needs cosine similarities, but the '{slot}' scores of {cls.__name__} are "
            f"plain dot products; {remedy} loss=infonce, triplet or sigmoid",
        )
    if scores.bias and loss.uses_bias:
        return Verdict(
            "allowed",
            f"{name} goes on from the scale and the bias that the weights of {cls.__name__} were "
            "trained with; its own options temperature, bias and learnable are not used",
        )
    if loss.learns_scale and loss.uses_scale and scores.scale:
        return Verdict(
            "refused",
            f"{name} would learn a temperature that is never used, because {cls.__name__} learns "
            "one; set use_model_scale=false (to use the loss's) or learnable=false (to use the "
            "model's) in the loss",
        )
    if scores.soft and not loss.uses_soft:
        return Verdict(
            "hard",
            f"{name} ignores soft targets: distillation ({scores.soft}) is off in slot '{slot}', "
            "its targets are the hard matches",
        )
    return Verdict("allowed")


def notes(model: Model) -> list[str]:
    """Log lines about the compatibility of the losses in ``model``."""
    losses: Iterable[tuple[str, Any]] = model.slots.items()
    verdicts = ((slot, judge(type(model), model.config, slot, loss)) for slot, loss in losses)
    return [f"loss.slots.{slot}: {verdict.reason}" for slot, verdict in verdicts if verdict.reason]
