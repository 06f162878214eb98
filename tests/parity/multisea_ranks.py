"""The losses of a golden case in real processes that gather from one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itr.clock import Clock
from itr.draws import ReplayedDraws
from itr.official.multisea import official_state
from tests.parity.harness import Case
from tests.parity.multisea_build import given_sides, load_queue, model_of, official_parameters
from tests.parity.ranks import on_ranks


class Recorder(ReplayedDraws):
    """Replays draws and keeps the weights that they were asked for."""

    def __init__(self, recorded: list[Tensor]):
        super().__init__(recorded)
        self.weights: list[Tensor] = []

    def categorical(self, weights: Tensor) -> Tensor:
        self.weights.append(weights)
        return super().categorical(weights)


def run_ranks(case: Case) -> list[dict[str, Any]]:
    """What each rank of the case has after one backward pass and one queue update."""
    return on_ranks(_losses, case, case.data["world_size"])


def _losses(case: Case, rank: int) -> dict[str, Any]:
    prefix = f"in.rank{rank}."
    model = model_of(case)
    load_queue(case, model)
    images, texts = given_sides(case, prefix)
    drawn = torch.cat([case[f"{prefix}neg_image_idx"], case[f"{prefix}neg_text_idx"]])
    draws = Recorder([drawn])
    model.before_step(Clock())
    terms = model.criterion(images, texts, case[f"{prefix}image_index"], Clock(), draws)
    (terms.losses["itc"] + terms.losses["itm"]).backward()
    model.after_step(Clock())
    to_images, to_texts = draws.weights[0].chunk(2)
    parameters = official_parameters(model, model.config.aformer.depth)
    return {
        "itc_loss": terms.losses["itc"].detach(),
        "itm_loss": terms.losses["itm"].detach(),
        "neg_weights_t2i": to_images,
        "neg_weights_i2t": to_texts,
        "post": official_state(model),
        "grad": {name: p.grad for name, p in parameters.items() if p.grad is not None},
        "grad.in": {
            "image_feats": images.feats.grad,
            "image_embeds": images.embeds.grad,
            "text_feats": texts.feats.grad,
            "text_embeds": texts.embeds.grad,
        },
    }
