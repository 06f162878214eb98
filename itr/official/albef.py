"""Importer of ALBEF.

The authors' checkpoint is ``{model, optimizer, lr_scheduler, config, epoch}`` or only the weights.
Pre-training files have ``text_encoder.bert.*`` and an MLM head, fine-tuned ones ``text_encoder.*``.
Queues are stored transposed, with one pointer for both; the tied MLM head is stored twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.errors import CheckpointError
from itr.models.albef import ALBEF, ALBEFConfig
from itr.nn.bert.fusion import LAYER_NAMES, FusionTextConfig
from itr.nn.momentum import fill_momentum_weights
from itr.nn.vit import ImageConfig
from itr.official.name_table import (
    TEXT_EXTRA_OPTIONS,
    Imported,
    ImportReport,
    NameTable,
    load_pickle,
    require_fit,
    to_json,
    without_prefix,
)
from itr.view import Facts

HEAD_WIDTH = 64  # of every released model
BERT_MASK = 103  # [MASK] of bert-base-uncased, which the files do not name
EXTRA_OPTIONS = {**TEXT_EXTRA_OPTIONS, "image.heads": "image_heads"}
DEPTH = {"coco": 256, "f30k": 128}  # the authors' k_test, for files without options
POINTER, IDS = "queue_ptr", "idx_queue"
QUEUES = ("image_queue", "text_queue")
TEXT_HEADS = ("text.heads", "--heads")
IMAGE_HEADS = ("image.heads", "--image-heads")
SAME = ("vision_proj", "text_proj")
TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


def name_table(text_layers: int, layers: int, pretrains: bool) -> NameTable:
    """Authors' names <-> ours, except queues, their pointer and tied weights."""
    pairs = [("temp", "temperature"), ("itm_head.", "itm_head.")]
    for suffix, owner in (("", ""), ("_m", "twin.")):
        pairs.append((f"visual_encoder{suffix}.", f"{owner}vision."))
        pairs += [(f"{name}{suffix}.", f"{owner}{name}.") for name in SAME]
        text = f"text_encoder{suffix}." + ("bert." if pretrains else "")
        pairs.append((f"{text}embeddings.", f"{owner}text.embeddings."))
        pairs += [
            (f"{text}encoder.layer.{i}.", f"{owner}text.encoder.layer.{i}.")
            for i in range(text_layers)
        ]
        pairs += [
            (f"{text}encoder.layer.{i}.{a}", f"{owner}fusion.layers.{i - text_layers}.{b}")
            for i in range(text_layers, layers)
            for a, b in LAYER_NAMES.items()
        ]
        head = f"text_encoder{suffix}.cls.predictions."
        pairs += [
            (f"{head}transform.dense.", f"{owner}words.dense."),
            (f"{head}transform.LayerNorm.", f"{owner}words.norm."),
            (f"{head}bias", f"{owner}words.bias"),
        ]
    return NameTable(pairs)


def table_of(config: ALBEFConfig) -> NameTable:
    """The name table of a model of ``config``."""
    text = config.text
    return name_table(text.fusion_layer, text.depth, config.task == "pretrain")


def weights_in(payload: Any) -> dict[str, Tensor] | None:
    """The weights in ``payload`` (see `load_pickle`); None unless they are those of an ALBEF for
    retrieval or pre-training."""
    state = payload.get("model", payload) if isinstance(payload, Mapping) else None
    if not (isinstance(state, Mapping) and state and all(isinstance(k, str) for k in state)):
        return None
    state = without_prefix(state)
    needed = ("visual_encoder.pos_embed", "vision_proj.weight", "itm_head.weight")
    crossed = any(k.startswith("text_encoder.") and ".crossattention." in k for k in state)
    return state if crossed and all(name in state for name in needed) else None


def recognizes(payload: Any) -> bool:
    """Whether ``payload`` (see `load_pickle`) is a checkpoint of the authors of ALBEF."""
    return weights_in(payload) is not None


def read(path: Path, text: Mapping[str, Any] | None = None) -> Imported:
    """Import an authors' file: pre-trained (a model of ``task=pretrain``) or fine-tuned.

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
            f"{path}: not a checkpoint of the authors of ALBEF for retrieval or pre-training: it "
            f"holds {content}; expected weights visual_encoder.*, text_encoder.*, vision_proj.*, "
            "itm_head.*, at the top level or below 'model'"
        )
    bare = "model" not in payload
    options = {} if bare else to_json(payload.get("config") or {})
    config, facts = _architecture(path, theirs, options, dict(text or {}))
    state, report = to_ours(theirs, config)
    with torch.device("meta"):
        expected = ALBEF(config, nn.ModuleDict(), {}, facts).state_dict()
    state = fill_momentum_weights(state, expected)
    optional = {name for name in expected if name.startswith(tuple(f"{q}." for q in QUEUES))}
    report.missing = require_fit(path, state, expected, optional)
    return Imported(
        model_name="albef",
        config=config,
        facts=facts,
        state=state,
        report=report,
        weights={"itc": 1.0, "itm": 1.0, "mlm": 1.0},
        info={"task": config.task, "epoch": None if bare else to_json(payload.get("epoch"))}
        | {"opt": options},
        depth={"*": int(options["k_test"])} if options.get("k_test") else DEPTH,
    )


def to_ours(
    theirs: Mapping[str, Tensor], config: ALBEFConfig
) -> tuple[dict[str, Tensor], ImportReport]:
    """The authors' weights by our names and shapes, and a report."""
    table, report, state = table_of(config), ImportReport(), {}
    for name, value in theirs.items():
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
        else:
            renamed = [(table.to_ours(name) or name, value)]  # unknown: `require_fit` lists it
        for ours, tensor in renamed:
            state[ours] = tensor
            (report.matched.append(ours) if ours == name else report.renamed.append((name, ours)))
    return state, report


def official_state(model: ALBEF, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights and buffers of ``model`` by the authors' names and shapes.

    ``tensors`` (by our names, e.g. gradients) replace the model's; tied and constant tensors are
    then left out. If the model has no momentum copies of the fusion layers, the layers themselves
    are written for them.
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
    return state if tensors is not None else {**state, **_repeated(model, state)}


def _repeated(model: ALBEF, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights and constants in the authors' files."""
    extra: dict[str, Tensor] = {}
    count = model.config.text.max_positions
    for suffix in ("", "_m"):
        text = f"text_encoder{suffix}." + ("bert." if model.pretrains else "")
        extra[f"{text}embeddings.position_ids"] = torch.arange(count)[None]
        if model.pretrains:
            words = state[f"{text}embeddings.word_embeddings.weight"]
            bias = state[f"text_encoder{suffix}.cls.predictions.bias"]
            for name, value in zip(TIED, (words, bias), strict=True):
                extra[f"text_encoder{suffix}.{name}"] = value
    if not any(name.startswith("twin.fusion.") for name in model.state_dict()):
        table, fusion = table_of(model.config), model.fusion.state_dict()
        for name, value in fusion.items():
            extra[str(table.to_official(f"twin.fusion.{name}"))] = value
    return extra


def export(model: ALBEF, epoch: int = 0) -> dict[str, Any]:
    """The authors' checkpoint format of ``model``, for ``torch.save``; without optimizer state."""
    config = model.config
    options = {
        "image_res": config.image.size,
        "queue_size": config.queue_size,
        "embed_dim": config.embed_size,
        "vision_width": config.image.width,
        "momentum": config.momentum,
        "alpha": config.distill_weight,
        "distill": config.distill,
        "warm_up": config.distill_warmup,
        "temp": config.temperature,
    }
    if model.pretrains:
        options["mlm_probability"] = config.mask_probability
    return {"model": official_state(model), "config": options, "epoch": epoch}


# Sizes


def _architecture(
    path: Path, theirs: Mapping[str, Tensor], options: Mapping[str, Any], extra: dict[str, Any]
) -> tuple[ALBEFConfig, Facts]:
    pretrains = any(name.startswith("text_encoder.bert.") for name in theirs)
    try:
        image = _image(path, theirs, extra.pop("image_heads", None))
        text, vocabulary = _text(path, theirs, "bert." if pretrains else "", extra)
        embed_size = len(theirs["vision_proj.weight"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot determine the model's sizes: weight {error} is missing or has an "
            "unexpected shape"
        ) from error
    base, fusion = ALBEFConfig(), f".encoder.layer.{text.fusion_layer}."

    def option(name: str, default: Any) -> Any:
        return type(default)(options.get(name, default))

    config = replace(
        base,
        task="pretrain" if pretrains else "retrieval",
        pretrained=False,
        embed_size=embed_size,
        queue_size=theirs["image_queue"].shape[1] if "image_queue" in theirs else base.queue_size,
        momentum=option("momentum", base.momentum),
        momentum_fusion=any(k.startswith("text_encoder_m.") and fusion in k for k in theirs),
        distill=option("distill", base.distill),
        distill_weight=option("alpha", base.distill_weight),
        distill_warmup=option("warm_up", base.distill_warmup),
        mask_probability=option("mlm_probability", base.mask_probability),
        train_length=25 if pretrains else None,
        crop_scale=[0.2, 1.0] if pretrains else base.crop_scale,
        image=image,
        text=text,
    )
    return config, Facts(vocabulary=vocabulary, mask_id=BERT_MASK)


def _image(path: Path, theirs: Mapping[str, Tensor], heads: int | None) -> ImageConfig:
    _, tokens, width = theirs["visual_encoder.pos_embed"].shape
    patch = theirs["visual_encoder.patch_embed.proj.weight"].shape[-1]
    hidden = len(theirs["visual_encoder.blocks.0.mlp.fc1.weight"])
    return ImageConfig(
        size=math.isqrt(tokens - 1) * patch,
        patch=patch,
        width=width,
        depth=_count(theirs, "visual_encoder.blocks."),
        heads=heads or _heads(path, width, "vision transformer", *IMAGE_HEADS),
        mlp_ratio=hidden / width,
    )


def _text(
    path: Path, theirs: Mapping[str, Tensor], bert: str, extra: Mapping[str, Any]
) -> tuple[FusionTextConfig, int]:
    prefix = f"text_encoder.{bert}"
    embeddings, layer = f"{prefix}embeddings.", f"{prefix}encoder.layer."
    positions, width = theirs[f"{embeddings}position_embeddings.weight"].shape
    vocabulary = len(theirs[f"{embeddings}word_embeddings.weight"])
    fused = [k for k in theirs if k.startswith(layer) and ".crossattention." in k]
    text = FusionTextConfig(
        width=width,
        depth=_count(theirs, layer),
        mlp_width=len(theirs[f"{layer}0.intermediate.dense.weight"]),
        max_positions=positions,
        token_types=len(theirs[f"{embeddings}token_type_embeddings.weight"]),
        fusion_layer=min(_numbers(fused, layer)),
    )
    heads = extra.get("heads") or _heads(path, width, "BERT", *TEXT_HEADS)
    return replace(text, **{**extra, "heads": heads}), vocabulary


def _heads(path: Path, width: int, what: str, key: str, flag: str) -> int:
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{path}: its {what} is {width} wide, not a multiple of the authors' {HEAD_WIDTH} per "
            "head, and the weights do not determine the number of heads; set "
            f"model.{key} (itr official: {flag})"
        )
    return width // HEAD_WIDTH


def _numbers(names: Iterable[str], prefix: str) -> set[int]:
    return {int(k[len(prefix) :].split(".")[0]) for k in names if k.startswith(prefix)}


def _count(names: Iterable[str], prefix: str) -> int:
    return 1 + max(_numbers(names, prefix))
