"""Importer of ALBEF, for every task.

The authors' checkpoint is ``{model, optimizer, lr_scheduler, config, epoch}`` or only the weights,
which tell the task. Pre-training files have ``text_encoder.bert.*`` and an MLM head, others
``text_encoder.*``. Queues are stored transposed, with one pointer for both; some tensors are stored
twice (`itr.official.albef_names`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.errors import CheckpointError
from itr.models.albef import ALBEF, ALBEFConfig
from itr.models.albef.encoders import ALBEFEncoders
from itr.nn.momentum import fill_momentum_weights
from itr.official.albef_names import MATCHING, SIDES, TIED, repeated, second_names, table_of
from itr.official.albef_sizes import architecture, task_of
from itr.official.name_table import (
    TEXT_EXTRA_OPTIONS,
    Imported,
    ImportReport,
    load_pickle,
    require_fit,
    to_json,
    without_prefix,
)

EXTRA_OPTIONS = {**TEXT_EXTRA_OPTIONS, "image.heads": "image_heads"}
DEPTH = {"coco": 256, "f30k": 128}  # the authors' k_test, for files without options
POINTER, IDS = "queue_ptr", "idx_queue"
QUEUES = ("image_queue", "text_queue")


def weights_in(payload: Any) -> dict[str, Tensor] | None:
    """The weights in ``payload`` (see `load_pickle`); None unless they are those of an ALBEF."""
    state = payload.get("model", payload) if isinstance(payload, Mapping) else None
    if not (isinstance(state, Mapping) and state and all(isinstance(k, str) for k in state)):
        return None
    state = without_prefix(state)
    return None if task_of(state) is None else state


def recognizes(payload: Any) -> bool:
    """Whether ``payload`` (see `load_pickle`) is a checkpoint of the authors of ALBEF."""
    return weights_in(payload) is not None


def read(path: Path, text: Mapping[str, Any] | None = None) -> Imported:
    """Import an authors' file of any task, which its weights tell (`task_of`).

    ``text`` holds options that weights do not determine: ``tokenizer`` and ``name``
    (bert-base-uncased), ``heads`` (default: 64 wide each), ``dropout``, and ``image_heads``.
    Missing momentum weights are copied from the encoders; missing queues are random. Raises
    CheckpointError for a file of another method and for weights that do not fit.
    """
    payload = load_pickle(path)
    theirs = weights_in(payload)
    if theirs is None:
        content = sorted(map(str, payload))[:6] if isinstance(payload, Mapping) else type(payload)
        raise CheckpointError(
            f"{path}: not a checkpoint of the authors of ALBEF: it holds {content}; expected "
            "weights visual_encoder.*, text_encoder.* and one of itm_head.*, text_decoder.*, "
            "cls_head.*, ta_head.*, at the top level or below 'model'"
        )
    bare = "model" not in payload
    options = {} if bare else to_json(payload.get("config") or {})
    config, facts = architecture(path, theirs, options, dict(text or {}))
    state, report = to_ours(theirs, config)
    cls = ALBEF.class_for(config)
    with torch.device("meta"):
        expected = cls(config, nn.ModuleDict(), {}, facts).state_dict()
    state = fill_momentum_weights(state, expected)
    optional = {name for name in expected if name.startswith(tuple(f"{q}." for q in QUEUES))}
    report.missing = require_fit(path, state, expected, optional)
    ranked = {"*": int(options["k_test"])} if options.get("k_test") else DEPTH
    return Imported(
        model_name="albef",
        config=config,
        facts=facts,
        state=state,
        report=report,
        weights=dict.fromkeys(cls.term_names, 1.0),
        info={"task": config.task, "epoch": None if bare else to_json(payload.get("epoch"))}
        | {"opt": options},
        depth=ranked if config.task in MATCHING else {},
    )


def to_ours(
    theirs: Mapping[str, Tensor], config: ALBEFConfig
) -> tuple[dict[str, Tensor], ImportReport]:
    """The authors' weights by our names and shapes, and a report."""
    table, report, state = table_of(config), ImportReport(), {}
    seconds = {
        name: first for side, _ in SIDES for name, first in second_names(config, side).items()
    }
    # Second names come last: where they differ from the first, the authors' code loads them.
    for name in sorted(theirs, key=lambda name: name in seconds):
        value = theirs[name]
        renamed: list[tuple[str, Tensor]] = []
        if name in QUEUES:
            renamed = [(f"{name}.features", value.t().contiguous())]
        elif name == IDS:
            renamed = [("text_queue.ids", value[0])]
        elif name == POINTER:
            renamed = [(f"{queue}.pointer", value.clone()) for queue in QUEUES]
        elif name.endswith(("embeddings.position_ids", *TIED)):
            report.ignored.append(name)
            continue
        else:  # unknown: `require_fit` lists it
            renamed = [(table.to_ours(seconds.get(name, name)) or name, value)]
        for ours, tensor in renamed:
            state[ours] = tensor
            (report.matched.append(ours) if ours == name else report.renamed.append((name, ours)))
    return state, report


def official_state(
    model: ALBEFEncoders, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights and buffers of ``model`` by the authors' names and shapes.

    ``tensors`` (by our names, e.g. gradients) replace the model's; what stands in the authors'
    files twice is then written once. If a model for retrieval has no momentum copies of the fusion
    layers, the layers themselves are written for them.
    """
    table = table_of(model.config)
    tensors_by_name = model.state_dict() if tensors is None else tensors
    state: dict[str, Tensor] = {}
    for ours, value in tensors_by_name.items():
        queue, _, part = ours.partition(".")
        if queue in QUEUES:
            if part == "features":
                state[queue] = value.t().contiguous()
            elif part == "ids":
                state[IDS] = value[None]
            else:
                state[POINTER] = value
        elif (name := table.to_official(ours)) is not None:
            state[name] = value
    if tensors is not None:
        return state
    if model.twin is not None and not hasattr(model.twin, "fusion"):
        for name, value in model.fusion.state_dict().items():
            state[str(table.to_official(f"twin.fusion.{name}"))] = value
    return {**state, **repeated(model.config, state)}


def export(model: ALBEFEncoders, epoch: int = 0) -> dict[str, Any]:
    """The authors' checkpoint format of ``model``, for ``torch.save``; without optimizer state."""
    config = model.config
    options: dict[str, Any] = {
        "image_res": config.image.size,
        "vision_width": config.image.width,
        "alpha": config.distill_weight,
        "distill": config.distill,
        "warm_up": config.distill_warmup,
    }
    if config.task in MATCHING:
        options |= {
            "queue_size": config.queue_size,
            "embed_dim": config.embed_size,
            "momentum": config.momentum,
            "temp": config.temperature,
        }
    if config.task == "pretrain":
        options["mlm_probability"] = config.mask_probability
    return {"model": official_state(model), "config": options, "epoch": epoch}
