"""Our ALIP, batches and optimiser from what a golden case of ALIP says, whatever its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.losses.infonce import InfoNCE
from itr.models.alip import ALIP, ALIPConfig, ALIPTextConfig, ALIPVisionConfig, GateConfig
from itr.official.alip import NAMES
from itr.training.optim import OptimConfig, ScheduleConfig
from itr.view import Facts
from tests.parity.harness import Case

TINY = {  # where a case has no towers of its own
    "embed_dim": 4,
    "vision_cfg": {"image_size": 4, "layers": 1, "width": 4, "head_width": 4, "patch_size": 4},
    "text_cfg": {"context_length": 4, "vocab_size": 4, "width": 4, "heads": 1, "layers": 1},
}


def config_of(towers: Mapping[str, Any], hyper: Mapping[str, Any], **fields: Any) -> ALIPConfig:
    """The authors' habits included: the numbers come from their code."""
    vision, text = towers["vision_cfg"], towers["text_cfg"]
    return ALIPConfig(
        embed_size=towers["embed_dim"],
        gather_grad="full" if hyper.get("gather_with_grad") else "local",
        decay_all=True,
        image=ALIPVisionConfig(
            size=vision["image_size"],
            depth=vision["layers"],
            width=vision["width"],
            patch=vision.get("patch_size"),
            head_width=vision.get("head_width", 64),
            mlp_ratio=vision.get("mlp_ratio", 4.0),
        ),
        text=ALIPTextConfig(
            max_positions=text["context_length"],
            width=text["width"],
            heads=text["heads"],
            depth=text["layers"],
        ),
        gates=GateConfig(
            momentum=hyper.get("momentum", 0.99),
            start=hyper.get("H_init", 1.0),
            gamma_sample=hyper.get("gamma_s", 2.0),
            gamma_pair=hyper.get("gamma_p", 2.0),
        ),
        **fields,
    )


def build(towers: Mapping[str, Any], hyper: Mapping[str, Any], **fields: Any) -> ALIP:
    """An ALIP with random weights and the paper's losses."""
    slots = nn.ModuleDict({name: InfoNCE() for name in ALIP.slot_names})
    facts = Facts(vocabulary=towers["text_cfg"]["vocab_size"])
    config = config_of(towers, hyper)
    return ALIP(replace(config, **fields), slots, {"raw": 1.0, "caption": 1.0}, facts)


def load_official(model: ALIP, state: Mapping[str, Tensor]) -> None:
    """Load weights by the authors' names; every weight but the gates' means must be there."""
    ours = {NAMES.to_ours(name): value for name, value in state.items()}
    result = model.load_state_dict(ours, strict=False)  # type: ignore[arg-type]
    assert result.missing_keys == ["gates.means"] and not result.unexpected_keys, result


def model_of(case: Case, **fields: Any) -> ALIP:
    """The case's model, with its ``state.*`` where it has one."""
    model = build(case.data.get("tower_config", TINY), case.data.get("hyper", {}), **fields)
    if state := case.below("state."):
        load_official(model, state)
    return model


def official_parameters(model: ALIP) -> dict[str, nn.Parameter]:
    """Our parameters by the authors' names."""
    return {str(NAMES.to_official(name)): p for name, p in model.named_parameters()}


def batch_of(images: Tensor, text: Tensor) -> Batch:
    """``text`` [B, 2 L] holds the raw text and then the caption; no image comes twice."""
    raw, caption = text.chunk(2, dim=1)
    return Batch(
        image_id=torch.arange(len(images)),
        pixels=images,
        tokens=raw,
        second_tokens=caption,
        positive_pairs=len(images),
    )


def one_cycle(given: Mapping[str, Any]) -> ScheduleConfig:
    """The one-cycle schedule; what a case does not give is torch's default, as in their code."""
    start = 1.0 / given.get("div_factor", 25.0)
    return ScheduleConfig(
        kind="onecycle",
        rise_share=given.get("pct_start", 0.1),
        start_factor=start,
        end_factor=start / given.get("final_div_factor", 1e4),
        cycle_beta1=[given.get("max_momentum", 0.95), given.get("base_momentum", 0.85)],
    )


def optim_of(hyper: Mapping[str, Any]) -> OptimConfig:
    """AdamW under the one-cycle schedule."""
    return OptimConfig(
        lr=hyper["lr"],
        weight_decay=hyper["weight_decay"],
        betas=[hyper.get("beta1_argument", 0.9), hyper["beta2"]],
        eps=hyper.get("eps", 1e-8),
        max_norm=hyper.get("clip_grad_norm", 1.0),
        schedule=one_cycle(hyper),
    )
