"""Which loss fits which model, decided once, slot by slot.

A pair is allowed, allowed with hard matches (the model would hand in soft targets, the loss takes
none), or refused. ``itr losses`` prints the whole table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from itr.losses.score import ScoreLoss
from itr.models.base import RetrievalModel

Kind = Literal["allowed", "hard", "refused"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a loss in a slot; ``reason`` is a sentence where it is not just allowed."""

    kind: Kind
    reason: str = ""


def judge(cls: type[RetrievalModel], config: Any, slot: str, loss: ScoreLoss) -> Verdict:
    """Whether ``loss`` can work in ``slot`` of a ``cls`` of configuration ``config``."""
    scores, name = cls.slot_scores(config, slot), type(loss).__name__
    if loss.needs_cosine and not scores.cosine:
        remedy = f"type {scores.remedy}, or choose" if scores.remedy else "choose"
        return Verdict(
            "refused",
            f"{name} needs cosine similarities, but the '{slot}' scores of {cls.__name__} are "
            f"plain dot products; {remedy} loss=infonce, triplet or sigmoid",
        )
    if loss.learns_scale and loss.uses_scale and scores.scale:
        return Verdict(
            "refused",
            f"{name} would learn a temperature that it never uses, because {cls.__name__} has one "
            "of its own; type use_model_scale=false (the loss's own) or learnable=false (the "
            "model's) for it",
        )
    if scores.soft and not loss.uses_soft:
        return Verdict(
            "hard",
            f"{name} takes no soft targets: distillation ({scores.soft}) is off in slot '{slot}', "
            "its targets are the hard matches",
        )
    return Verdict("allowed")


def notes(model: RetrievalModel) -> list[str]:
    """What a run's log must say of the losses in ``model``."""
    given: Iterable[tuple[str, Any]] = model.slots.items()
    verdicts = ((slot, judge(type(model), model.config, slot, loss)) for slot, loss in given)
    return [f"loss.slots.{slot}: {verdict.reason}" for slot, verdict in verdicts if verdict.reason]
