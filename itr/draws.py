"""Every random choice inside a training step goes through `Draws`, so that a test can replay it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """Random choices from a generator of their own (saved in checkpoints, equal on every rank)."""

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu"):
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed)

    def categorical(self, weights: Tensor) -> Tensor:
        """One column per row of ``weights`` [P, M] (>= 0, need not sum to 1), as int64 [P].

        An exponential race: with q ~ Exp(1) the arg max of w / q is distributed as w, and equals
        what `torch.multinomial` draws from the same generator state, without its check of the
        weights (a host sync). A row of zeros gives column 0; the caller must not use it.
        """
        race = torch.empty_like(weights).exponential_(1.0, generator=self.generator)
        return (weights / race).argmax(dim=-1)

    def columns(self, weights: Tensor) -> Tensor:
        """For each cell of ``weights`` [N, M] (as `categorical`'s) a column of its row, int64
        [N, M], drawn as the row's weights say; cells are independent. Inverts their running sum."""
        bounds = weights.cumsum(dim=1)
        total = bounds[:, -1:]
        uniform = torch.rand(weights.shape, generator=self.generator, device=weights.device)
        found = torch.searchsorted(bounds, uniform * total, right=True)
        # Rounding may lift a draw onto the total, behind the last column that has a weight.
        return found.minimum((bounds >= total).int().argmax(dim=1, keepdim=True))

    def bernoulli(self, probability: float, shape: Sequence[int], device: torch.device) -> Tensor:
        """A bool tensor of ``shape``, True with ``probability``."""
        uniform = torch.rand(tuple(shape), generator=self.generator, device=device)
        return uniform < probability

    def randint(self, high: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Integers in [0, ``high``) of ``shape``, int64."""
        return torch.randint(high, tuple(shape), generator=self.generator, device=device)

    def get_state(self) -> Tensor:
        """State of the generator, uint8, for a checkpoint."""
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        """Go on from a state that `get_state` gave."""
        self.generator.set_state(state)


class ReplayedDraws(Draws):
    """Draws that were recorded elsewhere, handed out in the order in which they were made."""

    def __init__(self, recorded: Sequence[Tensor]):
        super().__init__()
        self.recorded = list(recorded)

    def _next(self, shape: tuple[int, ...]) -> Tensor:
        if not self.recorded:
            raise IndexError("more draws were asked for than were recorded")
        value = self.recorded.pop(0)
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"recorded draw has shape {tuple(value.shape)}, asked for {shape}")
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
