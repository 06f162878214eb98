"""One micro-batch on one rank or many: forward, weigh, sum, backward. It knows no method."""

from __future__ import annotations

import gc
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.models.base import RetrievalModel, Terms
from itr.parallel import world_size


class Step:
    """Gradients of ``model`` for one micro-batch, averaged over ranks where there are several.

    ``dtype`` is that of autocast (None: float32), ``scaler`` is fp16's.
    """

    def __init__(
        self,
        model: RetrievalModel,
        device: torch.device,
        dtype: torch.dtype | None,
        scaler: torch.amp.GradScaler,
    ):
        self.model, self.device, self.dtype, self.scaler = model, device, dtype, scaler
        self.asleep: frozenset[str] | None = None
        self.wrapped: nn.Module | None = None

    def set_requires_grad(self, clock: Clock) -> None:
        """Parameters of sleeping modules get no gradient, hence no update and no decay."""
        asleep = self.model.sleeping(clock)
        if asleep == self.asleep:
            return
        started, self.asleep = self.asleep is not None, asleep
        prefixes = tuple(f"{name}." for name in asleep)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not (name in asleep or name.startswith(prefixes)))
        self.wrapped = None
        self.wrapped = self.wrap(first=not started)

    def wrap(self, first: bool) -> nn.Module:
        """The model, so that ranks exchange gradients; ``first``: and begin with equal weights."""
        if world_size() == 1:
            return self.model
        gc.collect()  # the wrapper before has hooks on the parameters as long as it lives
        with warnings.catch_warnings():  # its new name is not in every version that works
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return DistributedDataParallel(self.model, broadcast_buffers=False, init_sync=first)

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> tuple[Tensor, Terms]:
        """The weighted sum of the terms, and the terms; ``batch`` is on the device."""
        assert self.wrapped is not None
        with self.autocast():
            terms = self.wrapped(batch, clock, draws)
        return self.total(terms), terms

    def total(self, terms: Terms) -> Tensor:
        """The terms, each times its weight, summed in float32."""
        weighted = [self.model.weights[key] * value for key, value in terms.losses.items()]
        return torch.stack([value.float() for value in weighted]).sum()

    def backward(self, total: Tensor, accumulate: int) -> None:
        """Add the gradients of ``total`` / ``accumulate``."""
        self.scaler.scale(total / accumulate).backward()

    def no_sync(self, last: bool) -> Any:
        """A context: ranks exchange gradients in the ``last`` micro-batch of an update only."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()
