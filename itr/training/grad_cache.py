"""Gradient caching: the exact gradient of a large batch from encoders that see small chunks.

Source: Gao, Zhang, Han, Callan: Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup (2021). All chunks are encoded without a graph. The loss and its gradient with respect to the
encodings follow from them. Each chunk is then encoded again with a graph, through which its share
of that gradient is propagated. Modules that look at pairs of an image and a caption also process
the cached tokens in chunks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from itr import parallel
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.models.base import Model, Terms
from itr.nn.batch_norm import batch_norms
from itr.training.step import Step


class GradCacheStep(Step):
    """`Step` with at most ``chunk`` pairs in the encoders at a time.

    Dropout is drawn per chunk, and is the same in both passes of a chunk. Raises ConfigError for a
    model with batch normalization.
    """

    def __init__(self, chunk: int, model: Model, *rest: Any):
        super().__init__(model, *rest)
        if norms := batch_norms(model):
            raise ConfigError(
                f"grad_cache={chunk}: {norms[0]} normalizes over the whole batch, so its chunks "
                "cannot be encoded separately; pass grad_cache=null, or choose a model without "
                "batch normalization"
            )
        self.chunk = model.chunk_pairs = chunk
        self.chunks: list[tuple[Batch, RngState]] = []
        self.cached: dict[str, Tensor] = {}
        self.last = True

    def wrap(self, first: bool) -> torch.nn.Module:
        """The model itself: chunks run backward one by one, and gradients are averaged later."""
        if first:
            parallel.broadcast_tensors([*self.model.parameters(), *self.model.buffers()])
        return self.model

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> tuple[Tensor, Terms]:
        """As `Step.forward`. Stores what the backward pass needs."""
        model, states = self.model, []
        self.chunks = []
        with self.autocast(), torch.no_grad():
            for chunk in batch.split(self.chunk):
                self.chunks.append((chunk, RngState(self.device)))
                states.append((model.states(chunk), model.frozen_states(chunk)))
        encoded, frozen = (
            {key: torch.cat([state[kind][key] for state in states]) for key in states[0][kind]}
            for kind in (0, 1)
        )
        self.cached = {key: value.requires_grad_() for key, value in encoded.items()}
        with self.autocast():
            terms = model.terms_of({**self.cached, **frozen}, batch, clock, draws)
        return self.total(terms), terms

    def backward(self, total: Tensor, accumulate: int) -> None:
        """Add the gradients of ``total`` / ``accumulate``, chunk by chunk."""
        super().backward(total, accumulate)
        final, start = RngState(self.device), 0
        for chunk, rng in self.chunks:
            rng.restore()
            with self.autocast():
                states = self.model.states(chunk)
            rows = slice(start, start + len(chunk))
            start += len(chunk)
            pairs = [
                (value, grad[rows])
                for key, value in states.items()
                if (grad := self.cached[key].grad) is not None and value.requires_grad
            ]
            if pairs:
                outputs, grads = zip(*pairs, strict=True)
                torch.autograd.backward(outputs, grads)
        final.restore()
        self.chunks, self.cached = [], {}
        if self.last:
            gradients = (p.grad for p in self.model.parameters() if p.grad is not None)
            parallel.all_reduce_mean(gradients)

    def no_sync(self, last: bool) -> AbstractContextManager[None]:
        """As `Step.no_sync`."""
        self.last = last
        return super().no_sync(last)


class RngState:
    """The state of the random generators that dropout uses, when the object was created."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Set the generators back to that state."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)
