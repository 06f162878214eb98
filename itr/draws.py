"""Random choices inside a training step; tests replay recorded ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """Source of all random choices that a model or a loss makes during a training step.

    It has its own generator, whose state is saved in checkpoints.
    """

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu"):
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed)

    def categorical(self, weights: Tensor) -> Tensor:
        """Draw one column index per row of ``weights`` [P, M]: int64 [P].

        Weights are >= 0 and need not sum to 1. A row of zeros gives column 0, which the caller must
        not use. Uses an exponential race: with q ~ Exp(1) the argmax of w / q is distributed as w.
        The result equals `torch.multinomial` from the same generator state, without its check of
        the weights, which would synchronize with the device.
        """
        race = torch.empty_like(weights).exponential_(1.0, generator=self.generator)
        return (weights / race).argmax(dim=-1)

    def columns(self, weights: Tensor) -> Tensor:
        """Draw M independent column indices per row of ``weights`` [N, M]: int64 [N, M].

        Weights are as for `categorical`. Inverts the cumulative sum of each row.
        """
        bounds = weights.cumsum(dim=1)
        total = bounds[:, -1:]
        uniform = torch.rand(weights.shape, generator=self.generator, device=weights.device)
        index = torch.searchsorted(bounds, uniform * total, right=True)
        # Rounding may raise a draw to the total, beyond the last column with a positive weight.
        return index.minimum((bounds >= total).int().argmax(dim=1, keepdim=True))

    def bernoulli(self, probability: float, shape: Sequence[int], device: torch.device) -> Tensor:
        """Bool tensor of ``shape``; each element is True with ``probability``."""
        uniform = torch.rand(tuple(shape), generator=self.generator, device=device)
        return uniform < probability

    def randint(self, high: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Uniform integers in [0, ``high``), int64 of ``shape``."""
        return torch.randint(high, tuple(shape), generator=self.generator, device=device)

    def get_state(self) -> Tensor:
        """State of the generator, uint8, for a checkpoint."""
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        """Restore a state from `get_state`."""
        self.generator.set_state(state)


class ReplayedDraws(Draws):
    """Returns recorded draws in the order in which they were made; for tests."""

    def __init__(self, recorded: Sequence[Tensor]):
        super().__init__()
        self.recorded = list(recorded)

    def _next(self, shape: tuple[int, ...]) -> Tensor:
        if not self.recorded:
            raise IndexError("no recorded draw is left")
        value = self.recorded.pop(0)
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"recorded draw has shape {tuple(value.shape)}, requested {shape}")
        return value

    def categorical(self, weights: Tensor) -> Tensor:
        """The next recorded draw, [P] int64."""
        return self._next((weights.shape[0],)).to(weights.device)

    def bernoulli(self, probability: float, shape: Sequence[int], device: torch.device) -> Tensor:
        """The next recorded draw, bool of ``shape``."""
        return self._next(tuple(shape)).to(device)

    def randint(self, high: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """The next recorded draw, int64 of ``shape``."""
        return self._next(tuple(shape)).to(device)
