"""The batch that every model gets. B pairs, R regions, D region width, L token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """One batch; a part that is absent is None (evaluation encodes images and captions apart).

    ``image_id`` and ``caption_id`` count from 0 inside the split (equal ``image_id`` = same image);
    the real ids of the data set stay in the split's records. Masks are True where something is.
    """

    image_id: Tensor | None = None  # [B] int64
    caption_id: Tensor | None = None  # [B] int64
    regions: Tensor | None = None  # [B, R, D] float32, zero-padded
    region_mask: Tensor | None = None  # [B, R] bool
    region_rows: Tensor | None = None  # [B, R] int64: regions that `finish` looks up on the device
    guides: Tensor | None = None  # [B, G] float32: one vector more of each image
    pixels: Tensor | None = None  # [B, 3, H, W] float32, normalised as the view says; with a
    # `finish`: uint8, cropped and resized only
    tokens: Tensor | None = None  # [B, L] int64, filled up with the tokenizer's pad id
    token_mask: Tensor | None = None  # [B, L] bool; [CLS] and [SEP] count
    second_tokens: Tensor | None = None  # [B, L2] int64, a second text of the same image
    second_mask: Tensor | None = None  # [B, L2] bool
    # Host-side facts, counted at collation so that no step has to ask the device.
    positive_pairs: int = 0  # how many True in image_id[:, None] == image_id[None, :]
    shared_pairs: int = 0  # the same of the whole batch, of which this is one rank's share
    gave_way: tuple[int, ...] = ()  # images of this share that are broken: others are shown
    min_region_length: int = 0  # fewest real regions in one row
    min_token_length: int = 0  # fewest real token ids in one row
    # What is cheaper where the model is (normalising pixels, looking up regions): `to` does it.
    finish: Callable[[Batch], Batch] | None = None

    def __len__(self) -> int:
        for value in (self.image_id, self.caption_id):
            if value is not None:
                return len(value)
        return 0

    def _map(self, function) -> Batch:
        changed = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **changed)

    def split(self, size: int) -> list[Batch]:
        """The same pairs in pieces of ``size`` (the last may be smaller), padded as they are."""
        return [
            self._map(lambda t, first=first: t[first : first + size])
            for first in range(0, len(self), size)
        ]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on ``device``, finished there."""
        moved = self._map(lambda t: t.to(device, non_blocking=non_blocking))
        if self.finish is None:
            return moved
        return self.finish(dataclasses.replace(moved, finish=None))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the data loader)."""
        return self._map(lambda t: t.pin_memory())
