"""A pre-trained tower as a model that can be evaluated without training: ``eval.py model.tower=``.

A model takes part by having the option ``tower``, whose weights it loads when ``pretrained`` is
set, and by naming in its `view_for` the tokenizer that belongs to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from itr.data.text.known_tokenizers import LEARNED, open_tokenizer
from itr.errors import ConfigError
from itr.jobs.eval.config import EvalConfig
from itr.jobs.load_checkpoint import LoadedCheckpoint, load_checkpoint
from itr.models.base import Model
from itr.models.build import model_class, model_config
from itr.view import Facts


def load_first(config: EvalConfig, device: torch.device) -> LoadedCheckpoint:
    """The first checkpoint of ``config``, or its tower. Raises as the functions that load them."""
    if config.tower is not None:
        return load_zero_shot(config.model, device)
    verify = config.runtime.verify_checkpoints
    return load_checkpoint(config.checkpoints[0], config.model, device, verify=verify)


def load_zero_shot(options: Mapping[str, Any], device: torch.device | str) -> LoadedCheckpoint:
    """The model of ``options`` (a model node) with the weights of ``options["tower"]``.

    Its losses are missing, and it has no data of its own. Raises ConfigError for a tower that
    cannot be loaded, and for random weights.
    """
    tower = options["tower"]
    config = model_config(options)
    if not config.pretrained:
        raise ConfigError(
            "model.pretrained=false: random weights, of which an evaluation says nothing; expected "
            "the tower's own. Leave it out, or pass checkpoint=RUN_DIR"
        )
    cls = model_class(options)
    view = cls.view_for(config)
    if view.tokenizer in LEARNED:
        raise ConfigError(
            f"model.tower={tower}: has no tokenizer of its own; expected a pre-trained tower. Pass "
            "another model.tower, or checkpoint=RUN_DIR"
        )
    tokenizer = open_tokenizer(view, ())
    facts = Facts(tokenizer.vocabulary_size, mask_id=tokenizer.mask_id)
    weights = dict.fromkeys(cls.term_names, 1.0)
    model: Model = cls(config, nn.ModuleDict(), weights, facts)
    origin = {
        "checkpoint": tower,
        "model": options["name"],
        "tower": tower,
        "data": None,
        "select_on": "zero-shot",
        "checkpoint_sha256": _weights_hash(model),
    }
    model.to(device).eval()
    return LoadedCheckpoint(model, tokenizer, Path(tower), None, origin)


def _weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights with their names, 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
