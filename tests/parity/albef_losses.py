"""Golden cases of ALBEF's losses alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itr.clock import Clock
from itr.draws import ReplayedDraws
from itr.losses.infonce import InfoNCE
from itr.models.albef import ALBEF, ALBEFConfig
from itr.models.momentum_contrast import MomentumFeatures
from itr.nn.bert.fusion import FusionTextConfig
from itr.nn.bert.masked_lm import mask_tokens
from itr.nn.queue import queue_products
from itr.nn.vit import ImageConfig
from itr.official.albef import official_state
from itr.view import Facts
from tests.parity.harness import Case


def check_contrast(case: Case, step: str, model: ALBEF, scores, keys: MomentumFeatures) -> None:
    """Logits, momentum logits and targets, before the queue moves on."""
    back, temp = scores.reverse(), model.temperature
    t_bank, v_bank = model.text_queue.features, model.image_queue.features
    found = {
        "sim_i2t": scores.values / temp,
        "sim_t2i": back.values / temp,
        "sim_i2t_m": queue_products(keys.images, keys.texts, t_bank) / temp,
        "sim_t2i_m": queue_products(keys.texts, keys.images, v_bank) / temp,
        "targets_i2t": _targets(scores),
        "targets_t2i": _targets(back),
    }
    for name, value in found.items():
        if f"out.{step}{name}" in case:
            case.check(f"out.{step}{name}", value)


def _targets(scores) -> Tensor:
    if scores.soft is not None:
        return scores.soft
    match = scores.match.float()
    return match / match.sum(dim=1, keepdim=True)


def check_weights(case: Case, step: str, weights: list[Tensor]) -> None:
    for_texts, for_images = weights[0].chunk(2)
    case.check(f"out.{step}weights_t2i", for_texts)
    case.check(f"out.{step}weights_i2t", for_images)


def itc_loss(case: Case) -> None:
    sizes = case.data["model"]
    ids, temp = case["in.idx"], case["in.temp"]
    for number, (name, distil) in enumerate(case.data["distill"].items()):
        model = _contrast_only(sizes["embed_dim"], sizes["queue_size"], distil)
        with torch.no_grad():
            model.temperature.copy_(temp)
        for queue in ("image", "text"):
            bank = model.get_submodule(f"{queue}_queue")
            bank.features.copy_(case[f"in.{queue}_queue"].t())
            bank.pointer.copy_(case["in.queue_ptr"])
        model.text_queue.ids.copy_(case["in.idx_queue"][0])
        leaves = [case[f"in.{key}_cls"].clone().requires_grad_() for key in ("image", "text")]
        v, t = (nn.functional.normalize(leaf, dim=-1) for leaf in leaves)
        keys = MomentumFeatures(
            *(
                nn.functional.normalize(case[f"in.{key}_cls_m"], dim=-1)
                for key in ("image", "text")
            ),
            torch.zeros(len(ids), 1, 1),
        )
        scores = model.contrast(v, t, keys, ids, float(case["in.alpha"][number]))
        loss = model.slots["itc"](scores, Clock(), ReplayedDraws([]))
        loss.backward()
        case.check(f"out.{name}.loss_ita", loss)
        check_contrast(case, f"{name}.", model, scores, keys)
        for key, leaf in zip(("image_cls", "text_cls"), leaves, strict=True):
            case.check(f"grad.{name}.{key}", leaf.grad)
        case.check(f"grad.{name}.temp", model.temperature.grad)
        draws = _Weights()
        model.negatives(scores, draws)
        check_weights(case, f"{name}.", draws.weights)
        model.pending = (keys, ids)
        model.after_step(Clock())
        _check_queues(case, f"out.{name}.", model)


class _Weights(ReplayedDraws):
    """Keeps what it is asked for and draws the first column."""

    def __init__(self) -> None:
        super().__init__([])
        self.weights: list[Tensor] = []

    def categorical(self, weights: Tensor) -> Tensor:
        self.weights.append(weights)
        return torch.zeros(len(weights), dtype=torch.int64)


def _contrast_only(embed_size: int, queue: int, distil: bool) -> ALBEF:
    """Towers of the least size: the case gives their outputs."""
    text = FusionTextConfig(
        width=4,
        depth=2,
        heads=1,
        mlp_width=4,
        max_positions=4,
        fusion_layer=1,
    )
    config = ALBEFConfig(
        pretrained=False,
        embed_size=embed_size,
        queue_size=queue,
        distill=distil,
        negative_floor=0.0,
        image=ImageConfig(size=2, patch=1, width=4, depth=1, heads=1),
        text=text,
    )
    slots = nn.ModuleDict({"itc": InfoNCE()})
    return ALBEF(config, slots, {"itc": 1.0, "itm": 1.0, "mlm": 1.0}, Facts(vocabulary=8))


def _check_queues(case: Case, prefix: str, model: ALBEF) -> None:
    state = official_state(model)
    for name in ("image_queue", "text_queue", "idx_queue", "queue_ptr"):
        case.check(f"{prefix}{name}", state[name])


def masking(case: Case) -> None:
    hyper, ids = case.data["hyper"], case["in.input_ids"]
    given = case.below("in.draw.mlm_")
    draws = ReplayedDraws(
        [*(given[k].bool() for k in ("select", "replace80", "random50")), given["random_words"]]
    )
    hidden = mask_tokens(
        ids,
        ids != hyper["pad_token_id"],
        draws,
        hyper["mlm_probability"],
        hyper["mask_token_id"],
        hyper["vocab_size"],
    )
    case.check("out.masked_ids", hidden.tokens)
    case.check("out.labels", hidden.labels)
