"""Initial weights from ``model.init``: another run, a checkpoint of ours, or an authors' file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from itr import checkpoint
from itr.data.text.known_tokenizers import tokenizer_from_json
from itr.data.text.tokenizer import Tokenizer
from itr.errors import CheckpointError, first_of
from itr.instantiate import check
from itr.models.base import Model
from itr.models.build import model_config, require_honest
from itr.nn.lora import LoRAConfig, merged
from itr.official.load import importer_of, recognize
from itr.official.name_table import SHOWN, extra_options, listed
from itr.training.checkpointing import resolve_checkpoint
from itr.view import Facts

QUEUE_IDS = "_queue.ids"  # image ids of queued features, which belong to another dataset
# Sizes of pretrained encoders in a model node.
ENCODER_SIZES = {
    "text": (
        "width depth heads mlp_width max_positions token_types activation layer_norm_eps init_std "
        "pad_id fusion_layer"
    ).split(),
    "image": "patch width depth heads head_width mlp_ratio".split(),
}


def stored_tokenizer(source: str | None) -> Tokenizer | None:
    """The tokenizer stored in the checkpoint ``source``; None if there is none.

    Raises CheckpointError if the file does not exist.
    """
    if source is None:
        return None
    path = resolve_checkpoint(Path(source), "model.init")
    if path.suffix != ".safetensors":
        return None
    stored = checkpoint.read_model_meta(path)["tokenizer"]
    return None if stored is None else tokenizer_from_json(stored)


def skip_pretrained(node: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], Facts]:
    """A model ``node`` and ``facts`` that do not load pretrained encoders, which the weights of
    ``init`` would overwrite.

    Encoder sizes and the vocabulary come from the checkpoint instead; an authors' file must fit the
    sizes in ``node``. Both arguments are returned unchanged if ``init`` or ``pretrained`` is not
    set. Raises CheckpointError if the file does not exist.
    """
    if node.get("init") is None or not model_config(node).__dict__.get("pretrained"):
        return dict(node), facts
    sized = {**node, "pretrained": False}
    path = resolve_checkpoint(Path(node["init"]), "model.init")
    if path.suffix != ".safetensors":
        return sized, facts
    meta = checkpoint.read_model_meta(path)
    if meta["model_name"] != node["name"]:
        return sized, facts  # `initialize_from` refuses it
    require_honest(path, meta)  # before anything of these sizes is built
    for part, keys in ENCODER_SIZES.items():
        stored, own = meta["model_config"].get(part), sized.get(part)
        if own is not None:
            sized[part] = {**own, **{k: stored[k] for k in keys if k in stored}}
    return sized, dataclasses.replace(facts, vocabulary=meta["facts"]["vocabulary"])


def initialize_from(model: Model, name: str, source: str) -> list[str]:
    """Load the weights of ``source`` (``model.init``) into ``model``, of method ``name``.

    Returns log messages: which weights were loaded, resized, ignored, and left at their initial
    values. Queued features are loaded without their image ids, which belong to another dataset.
    Queues of another size stay empty. Raises CheckpointError for another method and for weights of
    other sizes.
    """
    path = resolve_checkpoint(Path(source), "model.init")
    stored, messages = _read_weights(path, name, model)
    queue_ids = [k for k in stored if k.endswith(QUEUE_IDS)]
    stored = {k: v for k, v in stored.items() if k not in queue_ids}
    fitted, initial = model.fit_weights(stored), model.state_dict()
    loaded = {  # `fit_weights` fills gaps with the model's own tensors
        k: v
        for k, v in fitted.items()
        if k in initial and v.shape == initial[k].shape and v.data_ptr() != initial[k].data_ptr()
    }
    _check_sizes(source, model, fitted, loaded)
    model.load_state_dict({**initial, **loaded})
    share = f"{len(loaded)} of {len(initial)}"
    if len(loaded) == len(initial):
        share = f"all {len(initial)}"
    messages.append(f"model.init: loaded {share} weights from {path}")
    for what, names in (
        ("resized", [k for k in loaded if k in stored and stored[k].shape != loaded[k].shape]),
        ("copied to momentum encoders", _momentum_copies(loaded)),
        ("taken from weights of other names", _adopted(loaded, stored)),
        ("ignored", _ignored(loaded, stored)),
        ("ignored, image ids of another dataset", queue_ids),
        ("left at their initial values", [k for k in initial if k not in loaded]),
    ):
        if names:
            messages.append(f"model.init: {what} ({len(names)}): {listed(names)}")
    return messages


def _momentum_copies(loaded: Mapping[str, Tensor]) -> list[str]:
    """Momentum weights that were copied from the checkpoint's weights, not from its own of them."""
    trained = {name: value.data_ptr() for name, value in loaded.items()}
    return [
        k
        for k, v in loaded.items()
        if k.startswith("twin.") and v.data_ptr() == trained.get(k.removeprefix("twin."))
    ]


def _adopted(loaded: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    """Weights that the checkpoint of another task has under other names."""
    copies = set(_momentum_copies(loaded))
    return [k for k in loaded if k not in stored and k not in copies]


def _ignored(loaded: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    """Weights of the checkpoint that no weight was taken from."""
    used = {value.data_ptr() for value in loaded.values()}
    return [
        k
        for k, v in stored.items()
        if v.data_ptr() not in used and not (k in loaded and loaded[k].shape != v.shape)  # resized
    ]


def _check_sizes(
    source: str,
    model: Model,
    fitted: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
) -> None:
    """Raises CheckpointError if a parameter of ``fitted`` cannot be loaded, or none was."""
    parameters = dict(model.named_parameters())
    wrong = [
        f"{k} {tuple(fitted[k].shape)}, expected {tuple(parameters[k].shape)}"
        for k in fitted
        if k in parameters and k not in loaded
    ]
    if wrong:
        raise CheckpointError(
            f"model.init={source}: weights of another size: {first_of(wrong, SHOWN)}; set the "
            "model's sizes to the checkpoint's"
        )
    if not loaded.keys() & parameters.keys():
        raise CheckpointError(
            f"model.init={source}: contains none of the weights of {type(model).__name__}; pass a "
            "checkpoint of this method"
        )


def _read_weights(path: Path, name: str, model: Model) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by our names, and messages of an importer. Raises CheckpointError for another
    method."""
    meta: Mapping[str, Any] = {}
    if path.suffix == ".safetensors":
        meta = checkpoint.read_model_meta(path)
        method = meta["model_name"]
    else:
        method = recognize(path)
    if method != name:
        raise CheckpointError(
            f"model.init={path}: a checkpoint of model={method}, not of model={name}; pass a "
            f"checkpoint of {name}, or model={method}"
        )
    if meta:
        if fault := model.init_fault(meta["model_config"]):
            raise CheckpointError(f"model.init={path}: {fault}")
        _check_task(path, model, meta["model_config"].get("task"))
        return _plain_weights(path, meta["model_config"].get("lora") or {})
    importer = importer_of(name).module
    imported = importer.read(
        path, extra_options(importer.EXTRA_OPTIONS, dataclasses.asdict(model.config))
    )
    if hasattr(importer, "incompatibility") and (
        fault := importer.incompatibility(imported.config, model.config)
    ):
        raise CheckpointError(f"model.init={path}: {fault}")
    _check_task(path, model, getattr(imported.config, "task", None))
    return imported.state, imported.report.lines(path)


def _plain_weights(path: Path, lora: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a checkpoint of ours with its adapters, if it has any, merged into them."""
    state = checkpoint.read_tensors(path, "model/")
    if lora.get("rank") is None:
        return state, []
    options = check(lora, LoRAConfig, "model.lora")
    return merged(state, options), [
        f"model.init: the adapters of rank {options.rank} in {path} are merged into its weights"
    ]


def _check_task(path: Path, model: Model, task: str | None) -> None:
    """Raises CheckpointError if ``model`` cannot start from a checkpoint of ``task``."""
    allowed = model.starts_from
    if allowed is None or task is None or task in allowed:
        return
    raise CheckpointError(
        f"model.init={path}: a checkpoint of task={task}, which lacks what task="
        f"{model.config.task} starts from; expected one of task={', '.join(allowed)}; pass such a "
        f"checkpoint, or task={task}"
    )
