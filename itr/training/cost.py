"""What a training step will cost, counted on tensors without contents: nothing is computed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from itr import parallel
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.models.base import RetrievalModel, Terms

log = logging.getLogger("itr")


@dataclass
class Cost:
    """Of one micro-batch on one device."""

    flops: int  # forward and backward; a multiplication with its addition counts as two
    activations: int  # bytes that the forward pass keeps for the backward pass


class NoDraws(Draws):
    """Draws of the right shape and no chance."""

    def categorical(self, weights: Tensor) -> Tensor:
        """[P] int64."""
        return weights.argmax(dim=-1)

    def bernoulli(self, probability: float, shape: Sequence[int], device: torch.device) -> Tensor:
        """Bools of ``shape``."""
        return torch.zeros(tuple(shape), dtype=torch.bool, device=device)

    def randint(self, high: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Integers of ``shape``."""
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


class _Operations(FlopCounterMode):
    """Counts all operations together: which module they are of is found out by hooks that cannot
    follow a parameter which is handed to a module."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        tracker: Any = nullcontext()
        tracker.parents = {"Global"}
        self.mod_tracker = tracker


class _Pieces(nn.Module):
    """What a step on cached gradients keeps at its largest: one piece of ``chunk`` pairs in the
    encoders, and the loss of the whole batch behind what they gave."""

    def __init__(self, model: RetrievalModel, chunk: int):
        super().__init__()
        self.model, self.chunk = model, chunk
        model.at_once = chunk

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """The terms of ``batch``, without the encoders' graph."""
        self.held = self.model.states(batch.split(self.chunk)[0])
        with torch.no_grad():
            states, frozen = self.model.states(batch), self.model.frozen_states(batch)
        states = {key: value.requires_grad_() for key, value in states.items()}
        return self.model.terms_of({**states, **frozen}, batch, clock, draws)


def step_cost(
    model: RetrievalModel,
    batch: Batch,
    clock: Clock,
    dtype: torch.dtype | None,
    chunk: int | None = None,
) -> Cost | None:
    """Cost of ``batch`` (on the model's device) at ``clock``; None where it cannot be counted.

    With ``chunk`` (``grad_cache``) the activations are those of a step in pieces; the operations
    are those of both passes, without the first one that keeps nothing.
    """
    before = dict(vars(model))
    try:
        with parallel.single_process():
            cost = _count(model, batch, clock, dtype)
            if chunk is not None:
                pieces = _count(_Pieces(model, chunk), batch, clock, dtype, backward=False)
                cost = Cost(cost.flops, pieces.activations)
            return cost
    except Exception as error:  # an estimate is no reason not to train
        log.debug("the cost of a step could not be counted: %s", error)
        return None
    finally:
        model.__dict__.update(before)  # what the pass left on the model has no contents


def _count(
    model: nn.Module,
    batch: Batch,
    clock: Clock,
    dtype: torch.dtype | None,
    backward: bool = True,
) -> Cost:
    kept: dict[int, int] = {}
    device = next(model.parameters()).device
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        _Operations(display=False) as flops,
    ):
        weights = {name: fake.from_tensor(p) for name, p in model.named_parameters()}
        buffers = {name: fake.from_tensor(b) for name, b in model.named_buffers()}
        own = {id(value.untyped_storage()) for value in (*weights.values(), *buffers.values())}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if id(storage) not in own:
                kept[id(storage)] = storage.nbytes()
            return value

        empty = batch._map(fake.from_tensor)
        with (
            torch.autocast(device.type, dtype, enabled=dtype is not None),
            saved_tensors_hooks(keep, lambda value: value),
        ):
            terms = functional_call(
                model, {**weights, **buffers}, (empty, clock, NoDraws(0, device))
            )
        if backward:
            total = torch.stack([value.float() for value in terms.losses.values()]).sum()
            trained = [value for value in weights.values() if value.requires_grad]
            torch.autograd.grad(total, trained, allow_unused=True)
    return Cost(flops.get_total_flops(), sum(kept.values()))


def memory_of(model: RetrievalModel) -> tuple[int, int]:
    """Bytes of weights and buffers; bytes of gradients and of AdamW's two moments."""
    everything = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return everything, 3 * trained


def describe(model: RetrievalModel, cost: Cost | None, pairs: int) -> str:
    """The start-up line."""
    held, evolving = memory_of(model)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    if cost is None:
        return f"{count:.1f} M trained parameters; memory: {_size(held + evolving)} and activations"
    return (
        f"{count:.1f} M trained parameters; {cost.flops / 1e9:.3g} GFLOP for {pairs} pairs, both "
        f"passes; expected memory on each device: {_size(held + evolving + cost.activations)}"
        f" (weights and buffers {_size(held)}, gradients and moments {_size(evolving)}, "
        f"activations {_size(cost.activations)})"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
