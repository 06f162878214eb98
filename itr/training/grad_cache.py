"""The exact gradient of a loss over a large batch, from encoders that see a few pairs at a time.

Gao, Zhang, Han, Callan: Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup
(2021). Encode all pieces without a graph; compute the loss, and its gradient by what was encoded;
encode each piece again, now with a graph, and send its part of that gradient through. What looks at
pairs of an image and a caption runs over the cached tokens in pieces, too (`nn.pieces`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itr import parallel
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.models.base import RetrievalModel, Terms
from itr.nn.batch_norm import batch_norms
from itr.training.step import Step


class GradCacheStep(Step):
    """As `Step`, with ``chunk`` pairs in the encoders at once. A model's dropout is drawn anew for
    each piece, and is the same in both of its passes. Raises ConfigError for batch statistics."""

    def __init__(self, chunk: int, model: RetrievalModel, *rest: Any):
        super().__init__(model, *rest)
        if norms := batch_norms(model):
            raise ConfigError(
                f"grad_cache={chunk}: {norms[0]} normalises over the whole batch, so pieces of it "
                "cannot be encoded one by one; type grad_cache=null, or choose a model without "
                "batch normalisation"
            )
        self.chunk = model.at_once = chunk
        self.pieces: list[tuple[Batch, Chance]] = []
        self.cached: dict[str, Tensor] = {}
        self.last = True

    def wrap(self, first: bool) -> torch.nn.Module:
        """The model itself: pieces go backward one by one, and gradients are averaged after."""
        if first:
            parallel.broadcast_tensors([*self.model.parameters(), *self.model.buffers()])
        return self.model

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> tuple[Tensor, Terms]:
        """As `Step.forward`; keeps what the backward pass needs."""
        model, found = self.model, []
        self.pieces = []
        with self.autocast(), torch.no_grad():
            for piece in batch.split(self.chunk):
                self.pieces.append((piece, Chance(self.device)))
                found.append((model.states(piece), model.frozen_states(piece)))
        encoded, frozen = (
            {key: torch.cat([part[side][key] for part in found]) for key in found[0][side]}
            for side in (0, 1)
        )
        self.cached = {key: value.requires_grad_() for key, value in encoded.items()}
        with self.autocast():
            terms = model.terms_of({**self.cached, **frozen}, batch, clock, draws)
        return self.total(terms), terms

    def backward(self, total: Tensor, accumulate: int) -> None:
        """Add the gradients of ``total`` / ``accumulate``, piece by piece."""
        super().backward(total, accumulate)
        after, first = Chance(self.device), 0
        for piece, chance in self.pieces:
            chance.restore()
            with self.autocast():
                again = self.model.states(piece)
            rows = slice(first, first + len(piece))
            first += len(piece)
            pairs = [
                (value, grad[rows])
                for key, value in again.items()
                if (grad := self.cached[key].grad) is not None and value.requires_grad
            ]
            if pairs:
                outputs, grads = zip(*pairs, strict=True)
                torch.autograd.backward(outputs, grads)
        after.restore()
        self.pieces, self.cached = [], {}
        if self.last:
            gradients = (p.grad for p in self.model.parameters() if p.grad is not None)
            parallel.all_reduce_mean(gradients)

    def no_sync(self, last: bool) -> Any:
        """As `Step.no_sync`."""
        self.last = last
        return super().no_sync(last)


class Chance:
    """Where the generators that dropout uses stand."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Go back there."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)
