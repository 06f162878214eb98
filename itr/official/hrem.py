"""Importer of HREM. The authors' checkpoint does not hold the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.models.hrem import HREM, GraphConfig, HREMConfig
from itr.nn.bert.bert import TextConfig
from itr.official.name_table import TEXT_EXTRA_OPTIONS, Imported, NameTable
from itr.official.vse_family import (
    encoder_weights,
    fit,
    official_file,
    read_encoders,
    size_error,
    text_config_of,
)
from itr.view import Facts

EXTRA_OPTIONS = TEXT_EXTRA_OPTIONS
CUTOFFS = {"coco": 1.9}  # largest distance of a sampled negative; 1.7 for other datasets
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
    """Authors' names <-> ours; the graph's are ``criterion.*``, which the authors do not save."""
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


def recognizes(payload: Any) -> bool:
    """Whether ``payload`` (see `load_pickle`) is a checkpoint of the authors of HREM."""
    names = encoder_weights(payload) or {}
    layered = any(name.startswith("txt_enc.aggr.layers.0.") for name in names)
    return "img_enc.fc.fc.weight" in names and layered


def read(path: Path, text: Mapping[str, Any] | None = None) -> Imported:
    """Import the authors' ``model_best.pth``; no code in the file is executed.

    ``text`` as for `text_config_of`. Raises CheckpointError for a damaged or foreign file, and
    for weights that are missing, unexpected or of the wrong shape.
    """
    theirs, options, info = read_encoders(path, recognizes, "HREM")
    config, facts = _architecture(path, theirs, options, text)
    weights = {
        "base": 1.0,
        "cross": float(options.get("cross_loss", 1)),
        "graph": 1.0,
        "reg": float(options.get("reg_loss_weight", 10)),
    }
    with torch.device("meta"):
        expected = HREM(config, nn.ModuleDict(), {"base": 1.0}, facts).state_dict()
    unsaved = {name for name in expected if name.startswith(("relevance.", "graph."))}
    state, report = fit(path, theirs, name_table(config.graph.depth), expected, unsaved)
    return Imported("hrem", config, facts, state, report, weights, info)


def _architecture(
    path: Path,
    theirs: Mapping[str, Tensor],
    options: Mapping[str, Any],
    text: Mapping[str, Any] | None,
) -> tuple[HREMConfig, Facts]:
    encoder, vocabulary = text_config_of(path, theirs, text)
    try:
        embed_size, region_width = theirs["img_enc.fc.fc.weight"].shape
    except (KeyError, ValueError) as error:
        raise size_error(path, error) from error
    config = from_options(options, embed_size=embed_size, text=encoder)
    return config, Facts(vocabulary=vocabulary, region_width=region_width)


def from_options(options: Mapping[str, Any], text: TextConfig, **fields: Any) -> HREMConfig:
    """Our configuration for the authors' ``options``; ``fields`` take precedence."""
    base, graph = HREMConfig(), GraphConfig()

    def option(name: str, default: Any) -> Any:
        return type(default)(options.get(name, default))

    return replace(
        base,
        pretrained=False,
        **{
            "embed_size": option("embed_size", base.embed_size),
            "normalize_images": not options.get("no_imgnorm", False),
            "normalize_texts": not options.get("no_txtnorm", False),
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
            depth=option("num_layers_enc", graph.depth),
            topk=option("topk", graph.topk),
            threshold=option("threshold", graph.threshold),
            mask_weight=option("mask_weight", graph.mask_weight),
            normalize_nodes=bool(options.get("norm_input", True)),
        ),
    )


def official_state(model: HREM) -> dict[str, Tensor]:
    """Weights and buffers of ``model`` by the authors' names, the graph included."""
    table = name_table(model.config.graph.depth)
    named = {table.to_official(name): value for name, value in model.state_dict().items()}
    return {name: value for name, value in named.items() if name is not None}


def export(model: HREM, epoch: int = 0, best_rsum: float = 0.0, updates: int = 0) -> dict[str, Any]:
    """The authors' checkpoint format of ``model``, for ``torch.save``."""
    config, graph = model.config, model.config.graph
    options = dict(
        dataset="coco" if config.cutoff == CUTOFFS["coco"] else "f30k",
        embed_size=config.embed_size,
        img_dim=model.facts.region_width,
        no_imgnorm=not config.normalize_images,
        no_txtnorm=not config.normalize_texts,
        size_augment=int(config.region_drop > 0),
        nhead=config.heads,
        dropout=config.dropout,
        residual_weight=config.residual_weight,
        graph_lr_factor=config.graph_lr_factor,
        num_layers_enc=graph.depth,
        topk=graph.topk,
        threshold=graph.threshold,
        mask_weight=graph.mask_weight,
        norm_input=int(graph.normalize_nodes),
        cross_loss=model.weights.get("cross", 1.0),
        reg_loss_weight=model.weights.get("reg", 10.0),
        warmup=graph.warmup if graph.warmup is not None else 2**62,
    )
    return official_file(official_state(model), options, epoch, best_rsum, updates)
