"""Builds a model with its losses from configuration nodes and checks that they fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from itr import checkpoint
from itr.errors import CheckpointError, ConfigError, nearest
from itr.instantiate import build, check, locate
from itr.losses.score import ScoreLoss
from itr.models.adapters import adapt, lora_of
from itr.models.base import Model
from itr.models.compatibility import judge
from itr.nn.lora import merged
from itr.plugins import trust_targets
from itr.view import Facts


def model_class(node: Mapping[str, Any]) -> type[Model]:
    """The class of the model that a node describes. Raises ConfigError if it is no model."""
    return _target(node).class_for(model_config(node))


def model_config(node: Mapping[str, Any]) -> Any:
    """The model's options as its dataclass, checked."""
    return check(node, _target(node).Config, "model")


def _target(node: Mapping[str, Any]) -> type[Model]:
    target = locate(node["_target_"], "model")
    if not (isinstance(target, type) and issubclass(target, Model)):
        raise ConfigError(f"model._target_: {node['_target_']} is not a Model")
    return target


NO_LOSS = "none"  # name of the loss of a model without slots
MAX_LAYERS = 1000  # layers or heads of a model in a file
MAX_BUFFERS = 512 << 20  # bytes that are no weights, such as tables of positions
GENERIC_LOSSES = "loss=triplet, distance_triplet, uto, infonce and sigmoid fill any slot"


def build_slots(loss: Mapping[str, Any], cls: type[Model], config: Any) -> nn.ModuleDict:
    """The losses of a ``loss`` node, one per slot of a ``cls`` with configuration ``config``.

    ``loss.slots`` maps slot -> node; ``loss.default`` fills the other slots. Raises ConfigError for
    an unknown slot, a slot without a loss, and a loss that is incompatible with the slot's scores
    (`itr.models.compatibility`).
    """
    nodes, default = dict(loss.get("slots") or {}), loss.get("default")
    for slot in nodes:
        if slot not in cls.slot_names:
            raise ConfigError(
                f"loss.slots.{slot}: {cls.__name__} has no such slot{nearest(slot, cls.slot_names)}"
                f" (its slots: {', '.join(cls.slot_names)}); {GENERIC_LOSSES}"
            )
    slots = nn.ModuleDict()
    for slot in cls.slot_names:
        node = nodes.get(slot, default)
        if node is None:
            raise ConfigError(
                f"loss={loss.get('name')}: no loss for slot '{slot}'; {cls.__name__} needs "
                f"{', '.join(cls.slot_names)}; {GENERIC_LOSSES}"
            )
        slots[slot] = module = _build_loss(node, f"loss.slots.{slot}")
        verdict = judge(cls, config, slot, module)
        if verdict.kind == "refused":
            raise ConfigError(f"loss.slots.{slot}: {verdict.reason}")
    return slots


def _build_loss(node: Any, key: str) -> ScoreLoss:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{key}: expected {{_target_: itr.losses.<module>.<name>, ...}}")
    target = locate(node["_target_"], key)
    if not (isinstance(target, type) and issubclass(target, ScoreLoss)):
        raise ConfigError(f"{key}._target_: {node['_target_']} is not a ScoreLoss")
    return build(node, key)


def check_weights(weights: Mapping[str, float], cls: type[Model]) -> dict[str, float]:
    """The weight of each term.

    Raises ConfigError for unknown or missing terms, for weights that are negative or not finite,
    and if all are 0.
    """
    for term in weights:
        if term not in cls.term_names:
            raise ConfigError(
                f"loss.weights.{term}: {cls.__name__} has no such term"
                f"{nearest(term, cls.term_names)} (its terms: {', '.join(cls.term_names)})"
            )
    if missing := [term for term in cls.term_names if term not in weights]:
        raise ConfigError(f"loss.weights.{missing[0]} is missing; pass loss.weights.{missing[0]}=1")
    for term, weight in weights.items():
        if not 0.0 <= weight < math.inf:
            raise ConfigError(f"loss.weights.{term}={weight}: expected a finite number >= 0")
    if not any(weights.values()):
        raise ConfigError(
            f"loss.weights: all are 0, so nothing would be trained; pass loss.weights."
            f"{cls.term_names[0]}=1"
        )
    return {term: float(weights[term]) for term in cls.term_names}


def build_model(model: Mapping[str, Any], loss: Mapping[str, Any], facts: Facts) -> Model:
    """A model with its losses. Weights are random or pretrained, as ``model`` says."""
    cls = model_class(model)
    config = model_config(model)
    slots = build_slots(loss, cls, config)
    return cls(config, slots, check_weights(loss.get("weights") or {}, cls), facts)


def model_meta(model: Model) -> dict[str, Any]:
    """The JSON-serializable description from which `restore` rebuilds ``model``."""
    return {
        "model_target": f"{type(model).__module__}.{type(model).__qualname__}",
        "model_config": dataclasses.asdict(model.config),
        "facts": dataclasses.asdict(model.facts),
        "view": model.view.to_dict(),
        "weights": model.weights,
    }


def _require_few_layers(path: Path, node: Mapping[str, Any], prefix: str = "") -> None:
    """Raises CheckpointError for layers that no file could hold: building them would take hours."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            _require_few_layers(path, value, f"{prefix}{key}.")
        elif key.rpartition("_")[2] in ("depth", "layers", "layer", "heads") and (
            isinstance(value, int) and value > MAX_LAYERS
        ):
            raise CheckpointError(
                f"{path}: its header says model.{prefix}{key}={value}; expected at most "
                f"{MAX_LAYERS}. The file is damaged or forged; use another checkpoint"
            )


def restore(path: Path, meta: Mapping[str, Any], verify: bool = True) -> Model:
    """Rebuild the model of one of our checkpoints and load its weights strictly.

    Its file has all weights, so nothing pretrained is loaded, whatever its header says. With
    ``verify`` the weights' checksums are compared. Raises CheckpointError if its configuration or
    weights do not fit, or are damaged.
    """
    require_honest(path, meta)
    model = _build_stored(path, meta)
    checkpoint.load_weights(model, checkpoint.read_tensors(path, "model/", verify), str(path))
    return model


def restore_merged(
    path: Path, meta: Mapping[str, Any], verify: bool = True
) -> tuple[Model, int | None]:
    """As `restore`, with adapters merged into the weights, and their rank; None: it has none."""
    model = restore(path, meta, verify)
    options = lora_of(model)
    if options is None:
        return model, None
    config = {**meta["model_config"], "lora": {**meta["model_config"]["lora"], "rank": None}}
    plain = _build_stored(path, {**meta, "model_config": config})
    plain.load_state_dict(merged(model.state_dict(), options))
    return plain, options.rank


def require_honest(path: Path, meta: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the file has exactly the weights that its header describes.

    The model is only outlined, without memory, so that forged sizes take none.
    """
    with torch.device("meta"):
        outline = _build_stored(path, meta)
    checkpoint.require_fit(checkpoint.shapes(path, "model/"), outline, str(path))
    needed = sum(b.numel() * b.element_size() for b in outline.buffers())
    if needed > path.stat().st_size + MAX_BUFFERS:
        raise CheckpointError(
            f"{path}: its header describes tables of {needed / 1e9:.1f} GB beside its weights; the "
            "file is damaged or forged, use another checkpoint"
        )


def _build_stored(path: Path, meta: Mapping[str, Any]) -> Model:
    """The model that the header ``meta`` of ``path`` describes, not yet with its weights."""
    node = {**meta["model_config"], "_target_": meta["model_target"]}
    _require_few_layers(path, node)
    if "pretrained" in node:
        node["pretrained"] = False
    try:
        cls = model_class(node)
        config = model_config(node)
        # A converted authors' checkpoint has no losses; it can only be evaluated.
        slots = build_slots(meta["loss"], cls, config) if meta["loss"] else nn.ModuleDict()
        model = cls(config, slots, meta["weights"], Facts(**meta["facts"]))
        adapt(model)
        return model
    except Exception as error:  # a layer raises many types for sizes that cannot be
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ConfigError):
            reason = f"{type(error).__name__}: {reason[:200]}"
        raise CheckpointError(f"{path}: its configuration cannot be used: {reason}") from error


# Models of tasks that compare no scores have terms, but no slots


def refuse_loss(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``values``, unless a loss was chosen for a model that has no slot for it.

    Raises ConfigError for ``loss=NAME`` among the ``overrides`` of the command line.
    """
    with trust_targets(values):  # Hydra composed them from the user's own configuration
        cls = model_class(values["model"])
    chosen = [override for override in overrides if override.lstrip("+").startswith("loss")]
    if not cls.slot_names and chosen:
        raise ConfigError(
            f"{chosen[0]}: task={values['task']['name']} compares no scores of images and texts, "
            f"so that no loss fits; {cls.__name__} has the term {', '.join(cls.term_names)}. "
            "Leave it out"
        )
    return values


def with_task_loss(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` whose loss node has no slots and weight 1 for each term, if the model has none."""
    cls = model_class(values["model"])
    if cls.slot_names:
        return dict(values)
    weights = dict.fromkeys(cls.term_names, 1.0)
    return {
        **values,
        "loss": {"name": NO_LOSS, "slots": {}, "default": None, "weights": weights},
    }
