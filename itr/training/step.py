"""One micro-batch on one or several ranks: forward, weighted sum of the terms, backward."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.models.base import Model, Terms
from itr.parallel import world_size


class Step:
    """Computes the gradients of ``model`` for one micro-batch, averaged over ranks.

    ``dtype`` is the autocast type (None: float32); ``scaler`` scales fp16 losses.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype | None,
        scaler: torch.amp.GradScaler,
    ):
        self.model, self.device, self.dtype, self.scaler = model, device, dtype, scaler
        self.sleeping: frozenset[str] | None = None
        self.frozen: Callable[[Clock], frozenset[str]] = lambda clock: frozenset()
        self.wrapped: nn.Module | None = None

    def set_requires_grad(self, clock: Clock) -> None:
        """Freeze the modules that the model lists as sleeping at ``clock``, and those of
        ``frozen``; unfreeze the others.

        A frozen parameter gets no gradient, hence no update and no weight decay.
        """
        sleeping = self.model.sleeping(clock) | self.frozen(clock)
        if sleeping == self.sleeping:
            return
        first, self.sleeping = self.sleeping is None, sleeping
        prefixes = tuple(f"{name}." for name in sleeping)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not (name in sleeping or name.startswith(prefixes)))
        self.wrapped = None
        self.wrapped = self.wrap(first)

    def wrap(self, first: bool) -> nn.Module:
        """The model in DistributedDataParallel if there are several ranks.

        ``first``: also broadcast the weights of rank 0.
        """
        if world_size() == 1:
            return self.model
        gc.collect()  # the previous wrapper has hooks on the parameters while it exists
        with warnings.catch_warnings():  # its new name does not exist in every supported version
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return DistributedDataParallel(self.model, broadcast_buffers=False, init_sync=first)

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> tuple[Tensor, Terms]:
        """The weighted sum of the terms, and the terms. ``batch`` must be on the device."""
        assert self.wrapped is not None
        with self.autocast():
            terms = self.wrapped(batch, clock, draws)
        return self.total(terms), terms

    def total(self, terms: Terms) -> Tensor:
        """The sum of all terms, each multiplied by its weight, in float32."""
        weighted = [self.model.weights[key] * value for key, value in terms.losses.items()]
        return torch.stack([value.float() for value in weighted]).sum()

    def backward(self, total: Tensor, accumulate: int) -> None:
        """Add the gradients of ``total`` / ``accumulate``."""
        self.scaler.scale(total / accumulate).backward()

    def no_sync(self, last: bool) -> AbstractContextManager[None]:
        """A context in which ranks exchange gradients only if this is the ``last`` micro-batch of
        an update."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()
