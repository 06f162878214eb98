"""Importer of VSE-infinity (region features, BERT); USER builds on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.models.vse import VSE, VSEConfig
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

ENCODERS = (
    ("img_enc.fc.", "images.project."),
    ("img_enc.mlp.layers.0.", "images.mlp.inner."),
    ("img_enc.mlp.layers.1.", "images.mlp.outer."),
    ("img_enc.mlp.bns.0.", "images.mlp.norm."),
    ("img_enc.mlp.bns.1.", "images.mlp.unused_norm."),
    ("img_enc.gpool.gru.", "images.pool.gru."),
    ("img_enc.gpool.linear.", "images.pool.score."),
    ("txt_enc.bert.", "texts.bert."),
    ("txt_enc.linear.", "texts.project."),
    ("txt_enc.gpool.gru.", "texts.pool.gru."),
    ("txt_enc.gpool.linear.", "texts.pool.score."),
)
EXTRA_OPTIONS = TEXT_EXTRA_OPTIONS
ENHANCEMENT = "img_enc.v_sa."  # only in USER


def name_table() -> NameTable:
    """Authors' names <-> ours."""
    return NameTable(ENCODERS)


def recognizes(payload: Any) -> bool:
    """Whether ``payload`` (see `load_pickle`) is a checkpoint of the authors of VSE-infinity."""
    names = encoder_weights(payload) or {}
    enhanced = any(name.startswith(ENHANCEMENT) for name in names)
    return "img_enc.fc.weight" in names and "txt_enc.gpool.linear.weight" in names and not enhanced


def encoder_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `VSEConfig` from the authors' ``options``."""
    return {
        "pretrained": False,
        "normalize_images": not options.get("no_imgnorm", False),
        "normalize_texts": not options.get("no_txtnorm", False),
    }


def sizes_of(
    path: Path, theirs: Mapping[str, Tensor], text: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Facts]:
    """Fields of `VSEConfig` and facts from the weights."""
    config, vocabulary = text_config_of(path, theirs, text)
    try:
        embed_size, width = theirs["img_enc.fc.weight"].shape
    except (KeyError, ValueError) as error:
        raise size_error(path, error) from error
    return {"embed_size": embed_size, "text": config}, Facts(vocabulary, region_width=width)


def read(path: Path, text: Mapping[str, Any] | None = None) -> Imported:
    """Import the authors' ``model_best.pth``; no code in the file is executed.

    ``text`` as for `text_config_of`. Raises CheckpointError for a damaged or foreign file, and
    for weights that are missing, unexpected or of the wrong shape.
    """
    theirs, options, info = read_encoders(path, recognizes, "VSE-infinity")
    sizes, facts = sizes_of(path, theirs, text)
    config = replace(VSEConfig(), **encoder_options(options), **sizes)
    weights = {"batch": 1.0}
    with torch.device("meta"):
        expected = VSE(config, nn.ModuleDict(), weights, facts).state_dict()
    state, report = fit(path, theirs, name_table(), expected, optional=set())
    return Imported("vse", config, facts, state, report, weights, info)


def official_state(model: VSE, table: NameTable | None = None) -> dict[str, Tensor]:
    """Weights and buffers of ``model`` by the authors' names."""
    table = table or name_table()
    named = {table.to_official(name): value for name, value in model.state_dict().items()}
    return {name: value for name, value in named.items() if name is not None}


def written_options(model: VSE) -> dict[str, Any]:
    """The authors' options that describe ``model``'s encoders."""
    config = model.config
    return {
        "embed_size": config.embed_size,
        "img_dim": model.facts.region_width,
        "no_imgnorm": not config.normalize_images,
        "no_txtnorm": not config.normalize_texts,
        "precomp_enc_type": "basic",
    }


def export(model: VSE, epoch: int = 0, best_rsum: float = 0.0, updates: int = 0) -> dict[str, Any]:
    """The authors' checkpoint format of ``model``, for ``torch.save``."""
    options = {**written_options(model), "margin": 0.2, "max_violation": True}
    return official_file(official_state(model), options, epoch, best_rsum, updates)
