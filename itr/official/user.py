"""Importer of USER. The authors' checkpoint holds neither momentum encoders nor queues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.models.user import USER, USERConfig
from itr.nn.momentum import fill_momentum_weights
from itr.official import vse
from itr.official.name_table import TEXT_EXTRA_OPTIONS, Imported, NameTable
from itr.official.vse_family import encoder_weights, fit, official_file, read_encoders, size_error

SGE = (
    ("img_enc.v_sa.embedding_local.0.", "images.enhance.guides.own.local."),
    ("img_enc.v_sa.embedding_local.1.", "images.enhance.guides.own.local_norm."),
    ("img_enc.v_sa.embedding_global.0.", "images.enhance.guides.own.whole."),
    ("img_enc.v_sa.embedding_global.1.", "images.enhance.guides.own.whole_norm."),
    ("img_enc.v_sa.embedding_common.0.", "images.enhance.guides.own.common."),
)
SLOTS = "img_enc.v_sa.embedding_local.1.weight"  # [R]
EXTRA_OPTIONS = TEXT_EXTRA_OPTIONS
# Not in the authors' files; in their memory, queues are transposed: [D, K].
KEYS = (("img_enc.", "v_encoder_k."), ("txt_enc.", "t_encoder_k."))
QUEUES = (("v_queue", "image_queue.features"), ("t_queue", "text_queue.features"))


def name_table() -> NameTable:
    """Authors' names <-> ours, including momentum encoders and queues."""
    encoders = (*vse.ENCODERS, *SGE)
    keys = [
        (theirs.replace(query, key), f"twin.{ours}")
        for query, key in KEYS
        for theirs, ours in encoders
        if theirs.startswith(query)
    ]
    return NameTable([*encoders, *keys, *QUEUES])


def recognizes(payload: Any) -> bool:
    """Whether ``payload`` (see `load_pickle`) is a checkpoint of the authors of USER."""
    return SLOTS in (encoder_weights(payload) or {})


def from_options(options: Mapping[str, Any]) -> tuple[USERConfig, dict[str, float]]:
    """Our configuration and term weights for the authors' ``options``."""
    base = USERConfig()
    config = replace(
        base,
        **vse.encoder_options(options),
        attention_scale=float(options.get("attention_lamda", base.attention_scale)),
        queue_size=int(options.get("moco_M", base.queue_size)),
        momentum=float(options.get("moco_r", base.momentum)),
    )
    batch, queue = options.get("loss_lamda", 20), bool(options.get("use_moco", 1))
    return config, {"batch": float(batch), "queue": float(queue)}


def read(path: Path, text: Mapping[str, Any] | None = None) -> Imported:
    """Import the authors' ``model_best.pth``; no code in the file is executed.

    The momentum encoders are copies of the encoders, as at the start of training; the queues are
    random. ``text`` and errors as for `vse.read`.
    """
    theirs, options, info = read_encoders(path, recognizes, "USER")
    sizes, facts = vse.sizes_of(path, theirs, text)
    try:
        (regions,) = theirs[SLOTS].shape
    except ValueError as error:
        raise size_error(path, error) from error
    config, weights = from_options(options)
    config = replace(config, **sizes, regions=regions)
    facts = replace(facts, regions=regions)
    with torch.device("meta"):
        expected = USER(config, nn.ModuleDict(), weights, facts).state_dict()
    unsaved = {n for n in expected if n.startswith(("twin.", "image_queue.", "text_queue."))}
    state, report = fit(path, theirs, name_table(), expected, optional=unsaved)
    state = fill_momentum_weights(state, expected)
    report.missing = [name for name in report.missing if name not in state]
    return Imported("user", config, facts, state, report, weights, info)


def official_state(model: USER) -> dict[str, Tensor]:
    """Weights and buffers of ``model`` by the authors' names, momentum encoders and queues
    included."""
    state = vse.official_state(model, name_table())
    for theirs, _ in QUEUES:
        if theirs in state:
            state[theirs] = state[theirs].t()
    return state


def export(model: USER, epoch: int = 0, best_rsum: float = 0.0, updates: int = 0) -> dict[str, Any]:
    """The authors' checkpoint format of ``model``, for ``torch.save``."""
    config = model.config
    options = {
        **vse.written_options(model),
        "attention_lamda": config.attention_scale,
        "moco_M": config.queue_size,
        "moco_r": config.momentum,
        "loss_lamda": model.weights.get("batch", 20.0),
        "use_moco": int(model.uses_term("queue")),
    }
    return official_file(official_state(model), options, epoch, best_rsum, updates)
