"""Importer of Multi-SEA.

The authors' checkpoint is a Lightning file ``{state_dict, hyper_parameters: {config}, epoch,
global_step, ...}``. It holds unused weights: the rest of CLIP's text tower, a norm, and a
convolution in each cross-attention. It holds neither the tokenizer nor RoBERTa's number of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.errors import CheckpointError
from itr.models.multisea import AFormerConfig, MultiSEA, MultiSEAConfig
from itr.nn.bert.roberta import RobertaTextConfig
from itr.nn.clip.weights import CLIPConfig, sizes_in
from itr.official.name_table import (
    TEXT_EXTRA_OPTIONS,
    Imported,
    ImportReport,
    NameTable,
    head_width,
    load_pickle,
    require_fit,
    to_json,
)
from itr.view import Facts

SIDES = (("text_expert", "text"), ("image_expert", "image"))
EXPERT = (
    *((f"self_attention.self.{part}.", f"attention.{part}.") for part in ("query", "key", "value")),
    ("self_attention.output.dense.", "attention.out."),
    ("self_attention.output.attention_norm.", "attention.norm."),
    *((f"cross_attention.attn.{part}.", f"cross.{part}.") for part in ("query", "key", "value")),
    ("cross_attention.output.dense.", "cross.out."),
    ("cross_attention.output.attention_norm.", "cross.norm."),
    ("ffn.dense", "feedforward.dense"),
    ("ffn.ffn_norm.", "feedforward.norm."),
)
QUEUES = {  # authors' name -> ours; ours are transposed
    "image_queue": "image_queue.features",
    "text_queue": "text_queue.features",
    "idx_queue": "image_queue.ids",
    "queue_ptr": "image_queue.pointer",
}
SECOND_POINTER = "text_queue.pointer"  # equals the image queue's; theirs has one for both
CLIP_TEXT = {  # unused; shapes of OpenAI's ViT-B/16, for exported files
    "visual_encoder.token_embedding.weight": (49408, 512),
    "visual_encoder.positional_embedding": (77, 512),
    "visual_encoder.ln_final.weight": (512,),
    "visual_encoder.ln_final.bias": (512,),
}
UNUSED_NORM = "aformer.encoder.norm.weight"
POSITION_IDS = "text_encoder.embeddings.position_ids"  # a constant, written by old transformers
ROBERTA = "text_encoder."
EXTRA_OPTIONS = {**TEXT_EXTRA_OPTIONS, "image.head_width": "head_width"}
DEPTH = 64  # the authors' top_k, for files without options


def is_unused(name: str) -> bool:
    """Whether the authors' model never uses their weight ``name``."""
    return name in (*CLIP_TEXT, UNUSED_NORM, POSITION_IDS) or ".cross_attention.attn.dwc." in name


def name_table(layers: int) -> NameTable:
    """Authors' names <-> ours, for an A-Former of ``layers``; queues are also transposed."""
    experts = [
        (f"aformer.encoder.layers.{i}.{theirs}.{a}", f"aformer.{ours}.{i}.{b}")
        for i in range(layers)
        for theirs, ours in SIDES
        for a, b in EXPERT
    ]
    return NameTable(
        [
            ("temp", "temp"),
            ("alpha", "alpha"),
            ("visual_encoder.visual.", "images.tower."),
            ("vision_pooler.dense.", "images.pooler."),
            ("vision_proj_f.", "images.project_feats."),
            ("vision_proj_e.", "images.project_embeds."),
            (ROBERTA, "texts.roberta."),
            ("text_proj_f.", "texts.project_feats."),
            ("text_proj_e.", "texts.project_embeds."),
            ("aformer.pooler.dense.", "aformer.pooler."),
            ("itm_head.", "itm_head."),
            *experts,
            *QUEUES.items(),
        ]
    )


def to_ours(theirs: Mapping[str, Tensor], layers: int) -> tuple[dict[str, Tensor], ImportReport]:
    """The authors' weights by our names, and a report; unknown weights keep their names."""
    table, report, state = name_table(layers), ImportReport(), {}
    for name, value in theirs.items():
        if is_unused(name):
            report.ignored.append(name)
            continue
        ours = table.to_ours(name) or name
        (report.matched.append(name) if ours == name else report.renamed.append((name, ours)))
        state[ours] = _transposed(name, value)
    if "image_queue.pointer" in state:
        state[SECOND_POINTER] = state["image_queue.pointer"]
    return state, report


def _transposed(official: str, value: Tensor) -> Tensor:
    """``value`` of a queue in the other layout; self-inverse except for ids."""
    if official in ("image_queue", "text_queue"):
        return value.t().contiguous()
    return value.flatten() if official == "idx_queue" else value


def official_state(model: MultiSEA) -> dict[str, Tensor]:
    """Weights and buffers of ``model`` by the authors' names and in their layout."""
    table, state = name_table(model.config.aformer.depth), {}
    for name, value in model.state_dict().items():
        official = table.to_official(name)
        if official is not None:
            value = _transposed(official, value)
            state[official] = value[None] if official == "idx_queue" else value
    return state


def recognizes(payload: Any) -> bool:
    """Whether ``payload`` (see `load_pickle`) is a checkpoint of the authors of Multi-SEA."""
    state = payload.get("state_dict") if isinstance(payload, Mapping) else None
    return isinstance(state, Mapping) and {UNUSED_NORM, "itm_head.weight"} <= set(state)


def read(path: Path, text: Mapping[str, Any] | None = None) -> Imported:
    """Import the authors' file ``path``; no code in the file is executed.

    ``text`` holds options that the file does not determine: those of RoBERTa, and ``head_width``
    (64) or ``image_heads`` of the image tower. Raises CheckpointError for a damaged or foreign
    file, and for weights that do not fit.
    """
    payload = load_pickle(path)
    if not recognizes(payload):
        raise CheckpointError(
            f"{path}: not a checkpoint of the authors of Multi-SEA; expected a Lightning file "
            "whose state_dict holds aformer.encoder.* and itm_head.*"
        )
    theirs: Mapping[str, Tensor] = payload["state_dict"]
    options = to_json((payload.get("hyper_parameters") or {}).get("config") or {})
    config, facts = _architecture(path, theirs, options, dict(text or {}))
    state, report = to_ours(theirs, config.aformer.depth)
    with torch.device("meta"):
        expected = MultiSEA(config, nn.ModuleDict(), {"itc": 1.0, "itm": 1.0}, facts).state_dict()
    report.missing = require_fit(path, state, expected, optional=set())
    info = {key: to_json(payload.get(key)) for key in ("epoch", "global_step")}
    return Imported(
        model_name="multisea",
        config=config,
        facts=facts,
        state=state,
        report=report,
        weights={"itc": 1.0, "itm": 1.0},
        info={**info, "opt": options},
        depth={"*": int(options.get("top_k") or DEPTH)},
    )


def _architecture(
    path: Path, theirs: Mapping[str, Tensor], options: Mapping[str, Any], text: dict[str, Any]
) -> tuple[MultiSEAConfig, Facts]:
    heads: dict[str, Any] = {k: text.pop(k) for k in ("head_width", "image_heads") if k in text}
    try:
        roberta = _roberta_sizes(theirs)
        vocabulary = theirs[f"{ROBERTA}embeddings.word_embeddings.weight"].shape[0]
        image = _image_sizes(theirs, heads)
        layers = _layers(theirs, "aformer.encoder.layers.")
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot determine the model's sizes: weight {error} is missing or has an "
            "unexpected shape"
        ) from error
    if roberta["width"] != 768 and "heads" not in text:
        raise CheckpointError(
            f"{path}: its RoBERTa is {roberta['width']} wide, not the authors' 768, and "
            "the weights do not determine the number of attention heads; set "
            "model.text.heads (itr official: --heads)"
        )
    return from_options(
        options,
        image=image,
        text=replace(RobertaTextConfig(), **roberta, **text),
        embed_size=theirs["itm_head.weight"].shape[1],
        layers=layers,
    ), Facts(vocabulary=vocabulary)


def from_options(
    options: Mapping[str, Any],
    image: CLIPConfig,
    text: RobertaTextConfig,
    embed_size: int | None = None,
    layers: int | None = None,
) -> MultiSEAConfig:
    """Our configuration for the authors' ``options``; the other arguments take precedence."""
    base, part = MultiSEAConfig(), AFormerConfig()
    drop = float(options.get("drop_rate", part.attention_dropout))
    return MultiSEAConfig(
        pretrained=False,
        embed_size=embed_size or int(options.get("hidden_size", base.embed_size)),
        text_padding=int(
            options.get("text_encoder_config", {}).get("max_text_len", base.text_padding)
        ),
        queue_size=int(options.get("queue_size", base.queue_size)),
        negatives="all" if options.get("negative_all_rank", True) else "local",
        distill=bool(options.get("distill", False)),
        distill_weight=float(options.get("alpha", base.distill_weight)),
        image=image,
        text=text,
        aformer=AFormerConfig(
            depth=layers or int(options.get("num_top_layer", part.depth)),
            heads=int(options.get("num_heads", part.heads)),
            mlp_ratio=float(options.get("mlp_ratio", part.mlp_ratio)),
            beta=float(options.get("beta", part.beta)),
            attention_dropout=drop,
        ),
    )


def _layers(theirs: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(n[len(prefix) :].split(".")[0]) for n in theirs if n.startswith(prefix))


def _roberta_sizes(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    embeddings, layer = f"{ROBERTA}embeddings.", f"{ROBERTA}encoder.layer."
    positions, hidden = theirs[f"{embeddings}position_embeddings.weight"].shape
    return {
        "width": hidden,
        "max_positions": positions,
        "token_types": theirs[f"{embeddings}token_type_embeddings.weight"].shape[0],
        "mlp_width": theirs[f"{layer}0.intermediate.dense.weight"].shape[0],
        "depth": _layers(theirs, layer),
    }


def _image_sizes(theirs: Mapping[str, Tensor], heads: Mapping[str, Any]) -> CLIPConfig:
    prefix = "visual_encoder.visual."
    tower = {name[len(prefix) :]: v for name, v in theirs.items() if name.startswith(prefix)}
    sizes = sizes_in(tower, replace(CLIPConfig(), trained_layers=4))
    patches = tower["positional_embedding"].shape[0] - 1
    kept = sizes.depth + 1  # here the last block is gone already
    return replace(
        sizes,
        size=round(patches**0.5) * sizes.patch,
        depth=kept,
        head_width=head_width(heads, sizes.width, sizes.head_width),
        trained_layers=min(4, kept),
    )


def export(model: MultiSEA, epoch: int = 0, updates: int = 0) -> dict[str, Any]:
    """The authors' checkpoint format of ``model``, for ``torch.save``.

    Unused weights are zeros. Optimizer and trainer state are left out.
    """
    state = official_state(model)
    # Expanded from one zero, so that unused weights do not enlarge the file.
    state.update({name: torch.zeros(()).expand(shape) for name, shape in CLIP_TEXT.items()})
    state[UNUSED_NORM] = torch.ones(model.config.embed_size)
    for i in range(model.config.aformer.depth):
        for theirs, _ in SIDES:
            unused = f"aformer.encoder.layers.{i}.{theirs}.cross_attention.attn.dwc."
            state[f"{unused}weight"] = torch.zeros(1, 1, 3, 3)
            state[f"{unused}bias"] = torch.zeros(1)
    return {
        "epoch": epoch,
        "global_step": updates,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "hparams_name": "kwargs",
        "hyper_parameters": {"config": to_options(model)},
    }


def to_options(model: MultiSEA) -> dict[str, Any]:
    """The authors' options for ``model``: the inverse of `from_options`."""
    config, part = model.config, model.config.aformer
    return {
        "arch": "aformer3_swiglu_queue_new",
        "hidden_size": config.embed_size,
        "num_top_layer": part.depth,
        "num_heads": part.heads,
        "mlp_ratio": part.mlp_ratio,
        "beta": part.beta,
        "drop_rate": part.attention_dropout,
        "queue_size": config.queue_size,
        "negative_all_rank": config.negatives == "all",
        "distill": config.distill,
        "alpha": config.distill_weight,
        "image_encoder_config": {
            "vit_name": "ViT-B-16",
            "image_size": config.image.size,
            "patch_size": config.image.patch,
        },
        "text_encoder_config": {
            "tokenizer_name": config.text.name,
            "tokenizer": config.text.name,
            "max_text_len": config.text_padding,
        },
    }
