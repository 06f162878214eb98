"""HREM: the authors' checkpoint <-> ours.

Theirs is a pickled ``{model: [image encoder, text encoder], opt: Namespace, epoch, best_rsum,
Eiters}``. It holds no graph (nor a tokenizer: they always use bert-base-uncased).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.errors import CheckpointError
from itr.models.hrem import HREM, GraphConfig, HREMConfig, TextConfig
from itr.official.table import (
    Imported,
    NameTable,
    Report,
    load_pickle,
    plain,
    require_fit,
    without_prefix,
)
from itr.view import Facts

SIDES = ("img_enc.", "txt_enc.")
POSITION_IDS = "txt_enc.bert.embeddings.position_ids"  # a constant, written by old transformers
CUTOFFS = {"coco": 1.9}  # distance beyond which no negative is drawn; 1.7 elsewhere
LAYER = (
    ("self_attn.in_proj_weight", "attention.qkv.weight"),
    ("self_attn.in_proj_bias", "attention.qkv.bias"),
    ("self_attn.out_proj.", "attention.out."),
    ("linear1.", "expand."),
    ("linear2.", "contract."),
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
)


def name_table(graph_layers: int = 1) -> NameTable:
    """The table of names; the graph's are ``criterion.*``, which the authors never save."""
    layers = [
        ("img_enc.aggr.layers.0.", "images.relation.layer."),
        ("txt_enc.aggr.layers.0.", "texts.relation.layer."),
    ]
    layers += [(f"criterion.gnn.layers.{i}.", f"graph.layers.{i}.") for i in range(graph_layers)]
    learned = "criterion.adj_model.adj_learning.mlp_"
    return NameTable(
        [
            ("img_enc.fc.fc.", "images.project."),
            ("img_enc.fc.mlp.layers.0.", "images.mlp.inner."),
            ("img_enc.fc.mlp.layers.1.", "images.mlp.outer."),
            ("img_enc.fc.mlp.bns.0.", "images.mlp.norm."),
            ("img_enc.fc.mlp.bns.1.", "images.mlp.unused_norm."),
            ("txt_enc.bert.", "texts.bert."),
            ("txt_enc.linear.", "texts.project."),
            *((f"{learned}{way}.0.", f"relevance.{way}.0.") for way in ("t2i", "i2t")),
            *((f"{learned}{way}.3.", f"relevance.{way}.2.") for way in ("t2i", "i2t")),
            *((theirs + a, ours + b) for theirs, ours in layers for a, b in LAYER),
        ]
    )


def recognises(payload: Any) -> bool:
    """Whether ``payload`` (see `load_pickle`) is a checkpoint of the authors of HREM."""
    model = payload.get("model") if isinstance(payload, Mapping) else None
    if not (isinstance(model, list | tuple) and len(model) == 2):
        return False
    if not all(isinstance(state, Mapping) and state for state in model):
        return False
    images, texts = (without_prefix(state) for state in model)
    return "fc.fc.weight" in images and any(name.startswith("aggr.layers.0.") for name in texts)


def read(path: Path, text: Mapping[str, Any] | None = None) -> Imported:
    """The authors' ``model_best.pth`` in our terms; no code in the file is executed.

    ``text`` overrides fields of the text configuration that no weight tells: ``tokenizer`` and
    ``name`` (bert-base-uncased), ``num_attention_heads`` (12), ``dropout``. Raises CheckpointError
    for a damaged or foreign file, and for weights that are missing, unexpected or misshapen.
    """
    payload = load_pickle(path)
    if not recognises(payload):
        found = sorted(map(str, payload)) if isinstance(payload, Mapping) else type(payload)
        raise CheckpointError(
            f"{path}: not a checkpoint of the authors of HREM: found {found}; expected a "
            "dictionary whose `model` is a list of the image and the text encoder's weights"
        )
    theirs = {
        side + name: value
        for side, state in zip(SIDES, payload["model"], strict=True)
        for name, value in without_prefix(state).items()
    }
    options = plain(payload.get("opt") or {})
    config, facts = _architecture(path, theirs, options, text or {})
    state, report = _rename(path, theirs, config, facts)
    info = {key: plain(payload.get(key)) for key in ("epoch", "best_rsum", "Eiters")}
    return Imported(
        model_name="hrem",
        config=config,
        facts=facts,
        state=state,
        report=report,
        weights={
            "base": 1.0,
            "cross": float(options.get("cross_loss", 1)),
            "graph": 1.0,
            "reg": float(options.get("reg_loss_weight", 10)),
        },
        info={**info, "opt": options},
    )


def _architecture(
    path: Path, theirs: Mapping[str, Tensor], options: Mapping[str, Any], text: Mapping[str, Any]
) -> tuple[HREMConfig, Facts]:
    try:
        embed_size, region_width = theirs["img_enc.fc.fc.weight"].shape
        sizes = _bert_sizes(theirs)
        vocabulary = theirs["txt_enc.bert.embeddings.word_embeddings.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot tell the model's sizes, the weight {error} is missing or misshapen"
        ) from error
    if sizes["hidden_size"] != 768 and "num_attention_heads" not in text:
        raise CheckpointError(
            f"{path}: its BERT is {sizes['hidden_size']} wide, not the authors' 768, and weights "
            "do not tell the number of attention heads; give model.text.num_attention_heads"
        )
    no_norm = {bool(options.get(key, False)) for key in ("no_imgnorm", "no_txtnorm")}
    if len(no_norm) == 2:
        raise CheckpointError(
            f"{path}: was trained with only one of no_imgnorm and no_txtnorm, which this suite "
            "does not offer"
        )
    return from_options(
        options,
        embed_size=embed_size,
        normalise=not no_norm.pop(),
        text=replace(TextConfig(), **sizes, **text),
    ), Facts(vocabulary=vocabulary, region_width=region_width)


def from_options(options: Mapping[str, Any], text: TextConfig, **fields: Any) -> HREMConfig:
    """Our configuration for the authors' ``options``; ``fields`` overrule them."""
    base, graph = HREMConfig(), GraphConfig()

    def option(name: str, default: Any) -> Any:
        return type(default)(options.get(name, default))

    return replace(
        base,
        pretrained=False,
        **{
            "embed_size": option("embed_size", base.embed_size),
            "normalise": not options.get("no_imgnorm", False),
            **fields,
        },
        heads=option("nhead", base.heads),
        dropout=option("dropout", base.dropout),
        residual_weight=option("residual_weight", base.residual_weight),
        region_drop=base.region_drop if options.get("size_augment", 1) else 0.0,
        cutoff=CUTOFFS.get(str(options.get("dataset")), base.cutoff),
        graph_lr_factor=option("graph_lr_factor", base.graph_lr_factor),
        text=text,
        graph=replace(
            graph,
            warmup=option("warmup", 8000),
            layers=option("num_layers_enc", graph.layers),
            topk=option("topk", graph.topk),
            threshold=option("threshold", graph.threshold),
            mask_weight=option("mask_weight", graph.mask_weight),
            norm_input=bool(options.get("norm_input", True)),
        ),
    )


def _bert_sizes(theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    embeddings, layer = "txt_enc.bert.embeddings.", "txt_enc.bert.encoder.layer."
    positions, hidden = theirs[f"{embeddings}position_embeddings.weight"].shape
    return {
        "hidden_size": hidden,
        "max_position_embeddings": positions,
        "type_vocab_size": theirs[f"{embeddings}token_type_embeddings.weight"].shape[0],
        "intermediate_size": theirs[f"{layer}0.intermediate.dense.weight"].shape[0],
        "num_hidden_layers": 1
        + max(int(name[len(layer) :].split(".")[0]) for name in theirs if name.startswith(layer)),
    }


def _rename(
    path: Path, theirs: Mapping[str, Tensor], config: HREMConfig, facts: Facts
) -> tuple[dict[str, Tensor], Report]:
    table, report, state = name_table(config.graph.layers), Report(), {}
    for name, value in theirs.items():
        if name == POSITION_IDS:
            report.ignored.append(name)
            continue
        ours = table.to_ours(name) or name  # unknown: `require_fit` lists it
        report.renamed.append((name, ours))
        state[ours] = value
    with torch.device("meta"):
        expected = HREM(config, nn.ModuleDict(), {"base": 1.0}, facts).state_dict()
    unsaved = {name for name in expected if name.startswith(("relevance.", "graph."))}
    report.missing = require_fit(path, state, expected, optional=unsaved)
    return state, report


def official_state(model: HREM) -> dict[str, Tensor]:
    """All weights and buffers of ``model`` by the authors' names, the graph's included."""
    table = name_table(model.config.graph.layers)
    named = {table.to_official(name): value for name, value in model.state_dict().items()}
    return {name: value for name, value in named.items() if name is not None}


def export(model: HREM, epoch: int = 0, best_rsum: float = 0.0, updates: int = 0) -> dict[str, Any]:
    """What the authors' code would have saved (``torch.save`` it); their loader reads it."""
    config, graph = model.config, model.config.graph
    state = official_state(model)
    options = argparse.Namespace(
        dataset="coco" if config.cutoff == CUTOFFS["coco"] else "f30k",
        embed_size=config.embed_size,
        img_dim=model.facts.region_width,
        no_imgnorm=not config.normalise,
        no_txtnorm=not config.normalise,
        size_augment=int(config.region_drop > 0),
        nhead=config.heads,
        dropout=config.dropout,
        residual_weight=config.residual_weight,
        graph_lr_factor=config.graph_lr_factor,
        num_layers_enc=graph.layers,
        topk=graph.topk,
        threshold=graph.threshold,
        mask_weight=graph.mask_weight,
        norm_input=int(graph.norm_input),
        cross_loss=model.weights.get("cross", 1.0),
        reg_loss_weight=model.weights.get("reg", 10.0),
        warmup=graph.warmup if graph.warmup is not None else 2**62,
    )
    return {
        "model": [
            {name[len(side) :]: value for name, value in state.items() if name.startswith(side)}
            for side in SIDES
        ],
        "opt": options,
        "epoch": epoch,
        "best_rsum": best_rsum,
        "Eiters": updates,
    }
