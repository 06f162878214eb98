"""From configuration nodes to a model with its losses in place; every misfit is found here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from itr import checkpoint
from itr.errors import CheckpointError, ConfigError
from itr.instantiate import build, check, locate, nearest
from itr.losses.score import ScoreLoss
from itr.models.base import RetrievalModel
from itr.models.compatibility import judge
from itr.view import Facts


def model_class(node: Mapping[str, Any]) -> type[RetrievalModel]:
    """The class that a model node names."""
    found = locate(node["_target_"], "model")
    if not (isinstance(found, type) and issubclass(found, RetrievalModel)):
        raise ConfigError(f"model._target_: {node['_target_']} is not a RetrievalModel")
    return found


def model_config(node: Mapping[str, Any]) -> Any:
    """The model's options, checked and typed."""
    return check(node, model_class(node).Config, "model")


GENERIC = "loss=triplet, distance_triplet, uto, infonce or sigmoid fills any slot"


def build_slots(loss: Mapping[str, Any], cls: type[RetrievalModel], config: Any) -> nn.ModuleDict:
    """The losses of a ``loss`` node, one for each slot of a ``cls`` of configuration ``config``.

    ``loss.slots`` maps slot -> node; ``loss.default`` fills the slots that it leaves out. Raises
    ConfigError for a slot that the model has not, a slot without a loss, or a loss that cannot
    work on the slot's scores (`itr.models.compatibility`).
    """
    given, default = dict(loss.get("slots") or {}), loss.get("default")
    for slot in given:
        if slot not in cls.slot_names:
            raise ConfigError(
                f"loss.slots.{slot}: {cls.__name__} has no such slot{nearest(slot, cls.slot_names)}"
                f" (its slots: {', '.join(cls.slot_names)}); {GENERIC}"
            )
    slots = nn.ModuleDict()
    for slot in cls.slot_names:
        node = given.get(slot, default)
        if node is None:
            raise ConfigError(
                f"loss '{loss.get('name')}' gives no slot '{slot}'; {cls.__name__} needs "
                f"{', '.join(cls.slot_names)}; {GENERIC}"
            )
        slots[slot] = module = _build_loss(node, f"loss.slots.{slot}")
        verdict = judge(cls, config, slot, module)
        if verdict.kind == "refused":
            raise ConfigError(f"loss.slots.{slot}: {verdict.reason}")
    return slots


def _build_loss(node: Any, where: str) -> ScoreLoss:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{where}: expected {{_target_: itr.losses.<module>.<name>, ...}}")
    found = locate(node["_target_"], where)
    if not (isinstance(found, type) and issubclass(found, ScoreLoss)):
        raise ConfigError(f"{where}: {node['_target_']} is not a ScoreLoss")
    return build(node, where)


def check_weights(weights: Mapping[str, float], cls: type[RetrievalModel]) -> dict[str, float]:
    """The weight of each term. Raises ConfigError for a term that the model does not have, and for
    weights that are no amounts or leave nothing to train."""
    for term in weights:
        if term not in cls.term_names:
            raise ConfigError(
                f"loss.weights.{term}: {cls.__name__} has no such term"
                f"{nearest(term, cls.term_names)} (its terms: {', '.join(cls.term_names)})"
            )
    if missing := [term for term in cls.term_names if term not in weights]:
        raise ConfigError(
            f"loss.weights.{missing[0]}: has no value; type loss.weights.{missing[0]}=1"
        )
    for term, weight in weights.items():
        if not 0.0 <= weight < math.inf:
            raise ConfigError(f"loss.weights.{term}={weight}: expected a number from 0 on")
    if not any(weights.values()):
        raise ConfigError(
            f"loss.weights: every one is 0, nothing would be trained; type loss.weights."
            f"{cls.term_names[0]}=1"
        )
    return {term: float(weights[term]) for term in cls.term_names}


def build_model(model: Mapping[str, Any], loss: Mapping[str, Any], facts: Facts) -> RetrievalModel:
    """A model with its losses, its weights random or pre-trained as ``model`` says."""
    cls = model_class(model)
    config = model_config(model)
    slots = build_slots(loss, cls, config)
    return cls(config, slots, check_weights(loss.get("weights") or {}, cls), facts)


def model_meta(model: RetrievalModel) -> dict[str, Any]:
    """What `restore` needs beside the weights; JSON-able."""
    return {
        "model_target": f"{type(model).__module__}.{type(model).__qualname__}",
        "model_config": dataclasses.asdict(model.config),
        "facts": dataclasses.asdict(model.facts),
        "view": model.view.to_dict(),
        "weights": model.weights,
    }


def restore(path: Path, meta: Mapping[str, Any]) -> RetrievalModel:
    """The model of a checkpoint of ours, weights loaded strictly; needs no other file.

    Raises CheckpointError if the weights do not fit.
    """
    node = {**meta["model_config"], "_target_": meta["model_target"]}
    try:
        cls = model_class(node)
        # A converted authors' file names no losses: it evaluates.
        config = model_config(node)
        slots = build_slots(meta["loss"], cls, config) if meta["loss"] else nn.ModuleDict()
        model = cls(config, slots, meta["weights"], Facts(**meta["facts"]))
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration cannot be used: {error}") from error
    checkpoint.load_weights(model, checkpoint.read_tensors(path, "model/"), str(path))
    return model
