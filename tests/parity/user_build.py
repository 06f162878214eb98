"""Our USER or VSE, losses and batches from what a golden case of USER says, whatever its sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.losses.triplet import Triplet
from itr.losses.uto import UTO
from itr.models.user import USER
from itr.models.vse import VSE, VSEConfig
from itr.official import user, vse
from itr.official.name_table import NameTable
from itr.training.optim import OptimConfig, ScheduleConfig
from itr.view import Facts
from tests.parity.harness import Case
from tests.parity.hrem_build import ANY_BERT, mask_of, text_config


def hyper_of(case: Case) -> dict[str, Any]:
    return case.data.get("hyper") or case.data.get("meta", {}).get("hyper", {})


def table_of(model: VSE) -> NameTable:
    return user.name_table() if isinstance(model, USER) else vse.name_table()


def model_of(case: Case) -> VSE:
    """A model of the case's sizes with its ``state.*`` loaded; the case's name says which."""
    hyper, bert = hyper_of(case), case.data.get("bert_config", ANY_BERT)
    sizes = case.data.get("sizes", {})
    width = hyper.get("img_dim", sizes.get("img_dim", 2048))
    sizes = {
        "embed_size": hyper.get("embed_size", sizes.get("embed", 1024)),
        "bert_lr_factor": hyper.get("bert_lr_factor", 0.1),
        "text": text_config(bert),
    }
    facts = Facts(vocabulary=bert["vocab_size"], region_width=width)
    if case.name.startswith("vse_infty"):
        hardest = "hardest" if hyper.get("max_violation", True) else "sum"
        loss = Triplet(margin=hyper.get("margin", 0.2), negatives=hardest, mask_same_image=False)
        config = dataclasses.replace(VSEConfig(), **vse.encoder_options(hyper), **sizes)
        model: VSE = VSE(config, nn.ModuleDict({"batch": loss}), {"batch": 1.0}, facts)
    else:
        form = {"mu": hyper.get("mu", 90.0), "gamma": hyper.get("gama", 0.5)}
        slots = {"batch": UTO(positive="zero", **form), "queue": UTO(positive="drop", **form)}
        config, weights = user.from_options(hyper)
        extra = {
            "regions": hyper.get("num_region", 36),
            "enhance_dropout": hyper.get("sge_dropout", 0.4),
        }
        config = dataclasses.replace(config, **sizes, **extra)
        model = USER(config, nn.ModuleDict(slots), weights, facts)
    load_official(case, model)
    return model


def load_official(case: Case, model: VSE) -> None:
    """Load ``state.*``; of every module that the case names, every weight must be there."""
    table, state = table_of(model), {}
    for name, value in case.below("state.").items():
        if name == "queue_ptr":
            state |= {f"{side}_queue.pointer": value for side in ("image", "text")}
            continue
        ours = table.to_ours(name)
        assert ours is not None, name
        state[ours] = value.t() if name in ("v_queue", "t_queue") else value
    result = model.load_state_dict(state, strict=False)
    given = {name.split(".")[0] for name in state}
    lost = [name for name in result.missing_keys if name.split(".")[0] in given]
    lost = [name for name in lost if not name.endswith("_queue.ids")]  # theirs keeps none
    assert not lost and not result.unexpected_keys, (lost, result.unexpected_keys)


def official_parameters(model: VSE) -> dict[str, nn.Parameter]:
    """Our parameters by the authors' names."""
    table = table_of(model)
    named = {table.to_official(name): p for name, p in model.named_parameters()}
    return {name: p for name, p in named.items() if name is not None}


def official_state(model: VSE) -> dict[str, Tensor]:
    if not isinstance(model, USER):
        return vse.official_state(model)
    state = user.official_state(model)
    return {**state, "queue_ptr": model.image_queue.pointer} if model.uses_term("queue") else state


def batch_of(case: Case, suffix: str = "") -> Batch:
    images, captions = case[f"in.images{suffix}"], case[f"in.captions{suffix}"]
    regions, words = case[f"in.image_lengths{suffix}"], case[f"in.cap_lengths{suffix}"]
    return Batch(
        image_id=torch.arange(len(images)),
        regions=images,
        region_mask=mask_of(regions, images.shape[1]),
        min_region_length=int(regions.min()),
        tokens=captions,
        token_mask=mask_of(words, captions.shape[1]),
        min_token_length=int(words.min()),
    )


def optim_config(case: Case, milestone: float = 10.0) -> OptimConfig:
    hyper = hyper_of(case)
    return OptimConfig(
        lr=hyper.get("learning_rate", 5e-4),
        weight_decay=hyper.get("weight_decay", 1e-4),
        betas=list(hyper.get("betas", (0.9, 0.999))),
        eps=hyper.get("eps", 1e-8),
        max_norm=hyper.get("grad_clip", 2.0),
        schedule=ScheduleConfig(kind="step", milestones=[milestone], decay=0.1, unit="epoch"),
    )
