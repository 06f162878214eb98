"""Small models of the region family and batches for them, made as the entry points make them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.models.base import RetrievalModel
from itr.models.build import build_model
from itr.training.config import check_config
from itr.training.optim import build_optimizer, clip_gradients
from itr.view import Facts
from tests.conftest import compose

WIDTH, REGIONS, VOCABULARY = 12, 6, 40
SIZES = (
    "model.embed_size=16",
    "model.pretrained=false",
    "model.text.tokenizer=wordpiece",
    "model.text.hidden_size=16",
    "model.text.intermediate_size=16",
    "model.text.num_hidden_layers=1",
    "model.text.num_attention_heads=2",
    "model.text.max_position_embeddings=32",
)
USER_SIZES = (f"model.regions={REGIONS}", "model.queue_size=24")


def build(name: str, *overrides: str, **facts: int | None) -> RetrievalModel:
    """The model as ``train.py model=<name> ...`` builds it, for data of `WIDTH`."""
    sizes = (*SIZES, *USER_SIZES) if name == "user" else SIZES
    values = compose("train", [f"model={name}", *sizes, *overrides])
    config = check_config(values)
    known = {"region_width": WIDTH, "regions": REGIONS, **facts}
    torch.manual_seed(0)
    return build_model(config.model, values["loss"], Facts(VOCABULARY, **known))


def batch(size: int = 8, shortest: int = 3, seed: int = 0, **fields: Any) -> Batch:
    """Random pairs with captions of ``shortest`` to 9 ids."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, 10, (size,), generator=random)
    lengths[0], lengths[-1] = 9, shortest
    mask = torch.arange(9) < lengths[:, None]
    made = Batch(
        image_id=torch.arange(size),
        caption_id=torch.arange(size),
        regions=torch.randn(size, REGIONS, WIDTH, generator=random),
        region_mask=torch.ones(size, REGIONS, dtype=torch.bool),
        tokens=torch.randint(1, VOCABULARY, (size, 9), generator=random) * mask,
        token_mask=mask,
        positive_pairs=size,
        min_region_length=REGIONS,
        min_token_length=shortest,
    )
    return dataclasses.replace(made, **fields)


class Steps:
    """The trainer's micro-batch, update and clock, without the trainer."""

    def __init__(self, name: str, model: RetrievalModel):
        config = check_config(compose("train", [f"model={name}"]))
        self.model, self.clock, self.draws = model.train(), Clock(), Draws()
        asleep = tuple(f"{module}." for module in model.sleeping(self.clock))
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(not parameter_name.startswith(asleep))
        self.optimizer = build_optimizer(model, config.optim)

    def micro_batch(self, given: Batch) -> torch.Tensor:
        """The weighted sum of the terms, after the backward pass."""
        self.model.before_step(self.clock)
        terms = self.model(given, self.clock, self.draws).losses
        total = torch.stack([self.model.weights[k] * v for k, v in terms.items()]).sum()
        total.backward()
        self.model.after_step(self.clock)
        return total.detach()

    def __call__(self, given: Batch) -> torch.Tensor:
        total = self.micro_batch(given)
        clip_gradients(self.model.parameters(), 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


def operators(function: Callable[[], Any]) -> Counter[str]:
    """How often each operator is called that is no view, forward and backward."""
    seen: Counter[str] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if not func.is_view:
                seen[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        function()
    return seen
