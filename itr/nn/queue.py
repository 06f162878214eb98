"""FIFO queue of the features of past batches, and products with it.

K rows, D width, N new rows, B queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itr.errors import ConfigError

INITS = {"normal": torch.randn, "uniform": torch.rand}
OVERFLOWS = ("wrap", "refuse", "clip")
NO_ID = -100  # id of a row that has not been written yet; matches no image


class FeatureQueue(nn.Module):
    """``features`` [K, D] float32, ``pointer`` [1] int64 and, with ``with_ids``, ``ids`` [K] int64.

    All are buffers. Rows are initialized as random unit vectors, ``normal`` (any direction) or
    ``uniform`` (from [0, 1), so in the positive orthant), and ids as -100. ``overflow`` defines
    what happens to a batch that exceeds the end of the queue: ``wrap`` continues at row 0, ``clip``
    drops the rest of the batch, ``refuse`` raises. With size 0 the queue is disabled.

    ``features`` are overwritten in place: enqueue after the backward pass
    (``RetrievalModel.after_step``), or pass the loss a copy.
    """

    features: Tensor
    pointer: Tensor
    ids: Tensor

    def __init__(
        self,
        width: int,
        size: int,
        init: str = "normal",
        with_ids: bool = False,
        overflow: str = "wrap",
    ):
        super().__init__()
        for key, value, known in (("init", init, tuple(INITS)), ("overflow", overflow, OVERFLOWS)):
            if value not in known:
                raise ConfigError(f"{key}={value}: expected one of {', '.join(known)}")
        if size < 0:
            raise ConfigError(f"model.queue_size={size}: expected 0 (no queue) or more")
        self.overflow, self.with_ids = overflow, with_ids
        rows = INITS[init](size, width)
        self.register_buffer("features", rows / rows.norm(dim=1, keepdim=True))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))
        if with_ids:
            self.register_buffer("ids", torch.full((size,), NO_ID))

    def __len__(self) -> int:
        return self.features.shape[0]

    def check_batch(self, count: int) -> None:
        """Raises ConfigError if ``count`` does not divide the size (``overflow=refuse`` only)."""
        size = len(self)
        if self.overflow == "refuse" and size % count:
            fitting = max(divisor for divisor in range(1, count + 1) if size % divisor == 0)
            raise ConfigError(
                f"model.queue_size={size} is not a multiple of batch_size={count}; set "
                f"batch_size={fitting} or model.queue_size={-(-size // count) * count}"
            )

    @torch.no_grad()
    def enqueue(self, rows: Tensor, ids: Tensor | None = None) -> None:
        """Write ``rows`` [N, D] (and their ``ids`` [N]) at the pointer and advance it.

        Of more than K rows only the last K are written, or with ``clip`` the first K. Shapes are
        static and nothing synchronizes with the device. Raises as `check_batch`.
        """
        assert (ids is not None) == self.with_ids
        self.check_batch(len(rows))
        size, count = len(self), len(rows)
        if not size:
            return
        first = 0 if self.overflow == "clip" else max(0, count - size)
        taken = slice(first, first + size)
        position = self.pointer + torch.arange(count, device=self.pointer.device)[taken]
        slots, fits = position % size, position < size
        self._write(self.features, rows[taken].to(self.features.dtype), slots, fits[:, None])
        if ids is not None:
            self._write(self.ids, ids[taken], slots, fits)
        end = self.pointer + count
        if self.overflow == "clip":
            end = end.clamp(max=size)
        self.pointer.copy_(end % size)

    def _write(self, buffer: Tensor, values: Tensor, slots: Tensor, fits: Tensor) -> None:
        if self.overflow == "clip":  # rows that do not fit write the current values back
            values = torch.where(fits, values, buffer[slots])
        buffer.index_copy_(0, slots, values)


def queue_products(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    """Products [B, B + K] of ``queries`` [B, D] with ``keys`` [B, D], then with ``queue`` [K, D].

    The queue is read in place and never copied.
    """
    return torch.cat([queries @ keys.t(), queries @ queue.t()], dim=1)


@torch.no_grad()
def soft_targets(logits: Tensor, match: Tensor, alpha: float) -> Tensor:
    """Soft targets [B, B + K], rows sum to 1 (ALBEF, equation 6).

    ``alpha`` weighs the softmax of the teacher's ``logits`` [B, B + K]; the rest is spread evenly
    over the matches (``match``, bool).
    """
    true = match.float()
    true = true / true.sum(dim=1, keepdim=True)
    return alpha * logits.softmax(dim=1) + (1.0 - alpha) * true
