"""Our HREM, losses and batches from what a golden case of HREM says, whatever its sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from itr.draws import ReplayedDraws
from itr.losses.score import ScoreLoss
from itr.losses.triplet import DistanceWeightedTriplet, Triplet
from itr.models.hrem import HREM, HREMConfig, Instances
from itr.nn.bert.bert import SIZES, TextConfig
from itr.official.hrem import from_options, name_table
from itr.view import Facts
from tests.parity.harness import Case

ANY_BERT = {
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
}
SLOTS = {"base": "base_loss", "graph": "gnn_loss"}


class Recorder(ReplayedDraws):
    """Replays draws and keeps the weights that they were asked for."""

    def __init__(self, recorded: Iterable[Tensor]):
        super().__init__(list(recorded))
        self.weights: list[Tensor] = []

    def categorical(self, weights: Tensor) -> Tensor:
        self.weights.append(weights)
        return super().categorical(weights)


def mask_of(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size) < lengths[:, None]


def text_config(bert: Mapping[str, Any]) -> TextConfig:
    sizes = {ours: bert[theirs] for ours, theirs in SIZES.items() if theirs in bert}
    return TextConfig(**sizes, dropout=bert.get("hidden_dropout_prob", 0.1))


def config_of(case: Case, **fields: Any) -> HREMConfig:
    """The authors' pooling habit included: the numbers come from their code."""
    options = case.data.get("official_options", {})
    config = from_options(options, text_config(case.data.get("bert_config", ANY_BERT)), **fields)
    return dataclasses.replace(config, shrinking_top2=True)


def loss_of(kind: str, options: Mapping[str, Any]) -> ScoreLoss:
    if kind == "vse":
        return Triplet(
            margin=options.get("margin", 0.2),
            negatives="hardest" if options.get("max_violation") else "sum",
            mask_same_image=bool(options.get("mask_repeat", 1)),
        )
    assert kind == "trip", kind
    return DistanceWeightedTriplet(
        cutoff=from_options(options, TextConfig()).cutoff, exhausted="zero"
    )


def model_of(case: Case, **fields: Any) -> HREM:
    """A model of the case's sizes with its ``state.*`` loaded; what the case lacks stays random."""
    options, bert = case.data.get("official_options", {}), case.data.get("bert_config", ANY_BERT)
    slots = {name: loss_of(options.get(key, "trip"), options) for name, key in SLOTS.items()}
    weights = {
        "base": 1.0,
        "cross": float(options.get("cross_loss", 1)),
        "graph": 1.0,
        # The authors compute (and a case shows) it even where it counts nothing.
        "reg": float(options.get("reg_loss_weight", 10)) or 1e-30,
    }
    facts = Facts(vocabulary=bert["vocab_size"], region_width=options.get("img_dim", 2048))
    config = config_of(case, normalize_images=True, **fields)
    model = HREM(config, nn.ModuleDict(slots), weights, facts)
    model.images.relation.normalize = not options.get("no_imgnorm", False)
    model.texts.relation.normalize = not options.get("no_txtnorm", False)
    load_official(case, model)
    return model


def load_official(case: Case, model: HREM) -> None:
    """Load ``state.*``; of every module that the case names, every weight must be there."""
    table = name_table(model.config.graph.depth)
    state = {table.to_ours(name): value for name, value in case.below("state.").items()}
    assert None not in state, [n for n in case.below("state.") if table.to_ours(n) is None]
    result = model.load_state_dict(state, strict=False)
    given = {str(name).split(".")[0] for name in state}
    lost = [name for name in result.missing_keys if name.split(".")[0] in given]
    assert not lost and not result.unexpected_keys, (lost, result.unexpected_keys)


def official_parameters(model: HREM) -> dict[str, nn.Parameter]:
    """Our parameters by the authors' names."""
    table = name_table(model.config.graph.depth)
    named = {table.to_official(name): p for name, p in model.named_parameters()}
    return {name: p for name, p in named.items() if name is not None}


def given_sides(case: Case) -> tuple[Instances, Instances]:
    """The encoders' outputs that a criterion case gives; all of them ask for their gradient."""

    def side(name: str, fragments: str) -> Instances:
        unit, parts = case[f"in.{name}_emb"], case[f"in.{name}_{fragments}"]
        raw = case.tensors.get(f"in.{name}_emb_notnorm", unit)
        leaves = [t.clone().requires_grad_() for t in (unit, raw, parts)]
        return Instances(*leaves, mask_of(case[f"in.{name}_len"], parts.shape[1]))

    return side("img", "regions"), side("cap", "words")
