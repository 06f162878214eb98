"""Builds our ALBEF, its batches and clocks from a golden case of any sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.draws import ReplayedDraws
from itr.losses.infonce import InfoNCE
from itr.models.albef import ALBEF, ALBEFConfig
from itr.models.albef.encoders import ALBEFEncoders
from itr.nn.bert.bert import SIZES
from itr.nn.bert.fusion import FusionTextConfig
from itr.nn.vit import ImageConfig
from itr.official.albef import official_state, to_ours
from itr.official.albef_names import PAIRED, table_of
from itr.view import Facts
from tests.parity.harness import Case

MASK_ID = 4  # where a case names neither its [MASK] nor its vocabulary


class Recorder(ReplayedDraws):
    """Replays draws and records the weights of categorical ones."""

    def __init__(self, recorded: Iterable[Tensor]):
        super().__init__(list(recorded))
        self.weights: list[Tensor] = []

    def categorical(self, weights: Tensor) -> Tensor:
        self.weights.append(weights)
        return super().categorical(weights)


def draws_of(case: Case, prefix: str = "") -> Recorder:
    """The recorded draws below ``in.draw.<prefix>``: negatives in one, then those of the words."""
    given = case.below(f"in.draw.{prefix}")
    recorded = [torch.cat([given["neg_image_idx"], given["neg_text_idx"]])]
    recorded += [
        given[f"mlm_{name}"].bool()
        for name in ("select", "replace80", "random50")
        if f"mlm_{name}" in given
    ]
    if "mlm_random_words" in given:
        recorded.append(given["mlm_random_words"])
    return Recorder(recorded)


def image_config(vit: Mapping[str, Any]) -> ImageConfig:
    return ImageConfig(
        size=vit["img_size"],
        patch=vit["patch_size"],
        width=vit["embed_dim"],
        depth=vit["depth"],
        heads=vit["num_heads"],
        mlp_ratio=vit["mlp_ratio"],
    )


def text_config(bert: Mapping[str, Any], paired: bool = False) -> FusionTextConfig:
    sizes = {ours: bert[theirs] for ours, theirs in SIZES.items() if theirs in bert}
    if paired:  # theirs counts each of two layers
        sizes["depth"] = (sizes["depth"] + bert["fusion_layer"]) // 2
    return FusionTextConfig(
        **sizes, dropout=bert["hidden_dropout_prob"], fusion_layer=bert["fusion_layer"]
    )


def config_of(case: Case, task: str, **fields: Any) -> ALBEFConfig:
    """The configuration of a case, with the options that reproduce the authors' code."""
    sizes, hyper = case.data["model"], case.data.get("hyper", {})
    pretrains = task == "pretrain"
    options: dict[str, Any] = {
        "embed_size": sizes.get("embed_dim", 16),
        "queue_size": hyper.get("queue_size", 8),
        "momentum": hyper.get("momentum", 0.995),
        "distill_weight": hyper.get("alpha", 0.4),
        "distill_warmup": hyper.get("warm_up", pretrains),
        "distill": hyper.get("distill", True),
        "mask_probability": hyper.get("mlm_probability", 0.15),
        "clamp_temperature": pretrains,
        "image": image_config(sizes["vit"]),
        "text": text_config(sizes["bert_config"], paired=task in PAIRED),
    }
    return ALBEFConfig(
        task=task,
        pretrained=False,
        momentum_fusion=True,
        negative_floor=0.0,
        **{**options, **fields},
    )


def mask_id_of(case: Case) -> int:
    if "vocab" in case.data:
        return case.data["vocab"].index("[MASK]")
    return case.data.get("hyper", {}).get("mask_token_id", MASK_ID)


def facts_of(case: Case) -> Facts:
    size = case.data["model"]["bert_config"]["vocab_size"]
    return Facts(vocabulary=size, mask_id=mask_id_of(case))


def model_of(case: Case, task: str = "retrieval", **fields: Any) -> Any:
    """A model of the case's sizes with its ``state.*`` loaded."""
    model = model_from(config_of(case, task, **fields), facts_of(case))
    load_official(model, case.below("state."))
    return model


def model_from(config: ALBEFConfig, facts: Facts) -> Any:
    """A model of ``config`` with random weights."""
    cls = ALBEF.class_for(config)
    slots = nn.ModuleDict({slot: InfoNCE() for slot in cls.slot_names})
    return cls(config, slots, dict.fromkeys(cls.term_names, 1.0), facts)


def load_official(model: ALBEFEncoders, theirs: Mapping[str, Tensor]) -> None:
    """Load strictly, except momentum encoders and queues if the case has none."""
    state, _ = to_ours(theirs, model.config)
    result = model.load_state_dict(state, strict=False)
    whole = any("_m." in name for name in theirs)
    lost = [
        k for k in result.missing_keys if whole or not k.startswith(("twin.", "image_q", "text_q"))
    ]
    assert not lost and not result.unexpected_keys, (lost, result.unexpected_keys)


def gradients(model: ALBEFEncoders) -> dict[str, Tensor]:
    """Gradients by the authors' names."""
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return official_state(model, grads)


def batch_of(pixels: Tensor, ids: Tensor, mask: Tensor, image_id: Tensor | None) -> Batch:
    if image_id is None:  # pre-training: every pair is an image of its own
        image_id = torch.arange(len(ids))
    return Batch(image_id=image_id, pixels=pixels, tokens=ids, token_mask=mask.bool())


def official_names(model: ALBEFEncoders) -> dict[str, str]:
    """Our names of parameters -> the authors'."""
    table = table_of(model.config)
    return {name: str(table.to_official(name)) for name, _ in model.named_parameters()}
