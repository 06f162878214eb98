"""An exponential moving average of the trained weights (EMA), which is validated in their place.

Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992). The average is
taken once an update. Its decay grows with the updates up to the one that was asked for, min(decay,
(1 + n) / (10 + n)) as in TensorFlow's ExponentialMovingAverage, so that the random weights of the
first updates are soon forgotten. Buffers, such as batch statistics, queues and momentum encoders,
are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from itr.errors import CheckpointError


class WeightAverage:
    """The average of the parameters of ``model``."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.names, self.weights = zip(*model.named_parameters(), strict=True)
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take the weights after update number ``updates``, from 1, into the average."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(self.averages, [w.detach() for w in self.weights], 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the model has the averages; its own weights come back afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        weights = [weight.detach() for weight in self.weights]
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, self.averages)
        torch._foreach_copy_(self.averages, kept)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters, for a checkpoint."""
        return dict(zip(self.names, self.averages, strict=True))

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Restore `tensors`. Raises CheckpointError, naming ``source``, if they are missing."""
        if missing := [name for name in self.names if name not in tensors]:
            raise CheckpointError(
                f"{source}: holds no average of {missing[0]}; expected a run with trainer.ema. "
                "Pass trainer.ema=null to go on without one"
            )
        torch._foreach_copy_(self.averages, [tensors[name] for name in self.names])
