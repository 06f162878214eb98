"""Our Multi-SEA and its parts from what a golden case says, whatever its sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from itr.batch import Batch
from itr.losses.infonce import InfoNCE
from itr.models.multisea import EnhancedFeatures, MultiSEA
from itr.nn.agent_attention import AFormer, AFormerConfig
from itr.nn.bert.bert import SIZES
from itr.nn.bert.roberta import RobertaTextConfig
from itr.nn.clip.weights import CLIPConfig
from itr.official.multisea import from_options, name_table, to_ours
from itr.view import Facts
from tests.parity.harness import Case

ANY_CLIP = {"width": 64, "layers": 2, "patch": 8, "res": 32}
ANY_ROBERTA = {
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
}


def about(case: Case) -> dict[str, Any]:
    """The JSON of the case, completed by that of the model whose state it shares."""
    shared = case.data.get("state_file")
    if shared is None:
        return case.data
    base = json.loads((case.path.parent / shared).with_suffix(".json").read_text("utf-8"))
    return {**base, **case.data}


def state_of(case: Case) -> dict[str, Tensor]:
    """``state.*`` by official name, from the case or the file that it names."""
    state, shared = case.below("state."), case.data.get("state_file")
    if shared is not None:
        loaded = load_file(case.path.parent / shared)
        state = {k.removeprefix("state."): v for k, v in loaded.items()}
    for name, value in case.data.get("state_overrides", {}).items():
        state[name] = torch.tensor(value)
    return state


def config_of(data: Mapping[str, Any], state: Mapping[str, Tensor], **fields: Any):
    """Sizes from ``data`` where a case names them, any where it does not need the encoders."""
    clip = data.get("tiny_clip", ANY_CLIP)
    roberta = data.get("tiny_roberta_config", ANY_ROBERTA)
    options = data.get("config", data)
    size = options.get("image_encoder_config", {}).get("image_size", clip["res"])
    kept = clip["layers"] - 1
    return dataclasses.replace(
        from_options(
            {**options, "drop_rate": 0.0},
            image=CLIPConfig(
                size=size,
                patch=clip["patch"],
                width=clip["width"],
                depth=kept,
                trained_layers=min(4, kept),
            ),
            text=RobertaTextConfig(
                **{ours: roberta[key] for ours, key in SIZES.items() if key in roberta},
                pad_id=roberta.get("pad_token_id", 1),
                dropout=0.0,
            ),
            embed_size=state["itm_head.weight"].shape[1],
        ),
        **fields,
    ), Facts(vocabulary=roberta["vocab_size"])


def model_of(case: Case, **fields: Any) -> MultiSEA:
    """A model of the case's sizes, dropout 0, with its ``state.*`` loaded; what the case lacks
    stays random."""
    data, state = about(case), state_of(case)
    config, facts = config_of(data, state, **fields)
    ratio = state["aformer.encoder.layers.0.text_expert.ffn.dense1.weight"].shape[0]
    config.aformer.mlp_ratio = ratio / config.embed_size
    config.aformer.dropout = 0.0
    slots = nn.ModuleDict({"itc": InfoNCE()})
    model = MultiSEA(config, slots, {"itc": 1.0, "itm": 1.0}, facts)
    load_official(model, state)
    return model


def load_official(model: MultiSEA, theirs: Mapping[str, Tensor]) -> None:
    """Load weights by official name; of every module that is named, every weight must be there."""
    state, _ = to_ours(theirs, model.config.aformer.depth)
    result = model.load_state_dict(state, strict=False)
    given = {name.split(".")[0] for name in state}
    lost = [name for name in result.missing_keys if name.split(".")[0] in given]
    assert not lost and not result.unexpected_keys, (lost, result.unexpected_keys)


def aformer_of(case: Case) -> AFormer:
    """The A-Former of a case that holds no other module."""
    sizes = case.data["aformer"]
    config = AFormerConfig(
        depth=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp_ratio=sizes["intermediate_size"] / sizes["hidden_size"],
        attention_dropout=0.0,
        dropout=0.0,
    )
    module = AFormer(sizes["hidden_size"], config)
    state, _ = to_ours(case.below("state."), sizes["num_hidden_layers"])
    module.load_state_dict({name.removeprefix("aformer."): v for name, v in state.items()})
    return module


def official_parameters(model: nn.Module, layers: int, prefix: str = "") -> dict[str, nn.Parameter]:
    """Parameters by the authors' names; ``prefix`` is that of ``model`` in the whole."""
    table = name_table(layers)
    named = {table.to_official(prefix + name): p for name, p in model.named_parameters()}
    return {name: p for name, p in named.items() if name is not None}


def given_sides(case: Case, prefix: str = "in.") -> tuple[EnhancedFeatures, EnhancedFeatures]:
    """What stage 2 gives, from a case of the losses alone; all of it asks for its gradient."""

    def leaf(name: str) -> Tensor:
        return case[prefix + name].clone().requires_grad_()

    return (
        EnhancedFeatures(leaf("image_feats"), leaf("image_embeds"), None),
        EnhancedFeatures(
            leaf("text_feats"), leaf("text_embeds"), case[f"{prefix}text_atts"].bool()
        ),
    )


def load_queue(case: Case, model: MultiSEA) -> None:
    """The queue, temperature and mixing share that a case of the losses gives as inputs."""
    names = ("image_queue", "text_queue", "idx_queue", "queue_ptr", "temp", "alpha")
    state, _ = to_ours({name: case[f"in.{name}"] for name in names}, model.config.aformer.depth)
    assert not model.load_state_dict(state, strict=False).unexpected_keys


def batch_of(case: Case, prefix: str = "in.") -> Batch:
    """The batch that a case gives under ``prefix``."""
    given = case.below(prefix)
    return Batch(
        image_id=given.get("image_index"),
        pixels=given["image"],
        tokens=given["input_ids"],
        token_mask=given["attention_mask"].bool(),
    )
