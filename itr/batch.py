"""The batch that every model receives.

Shapes: B pairs, R regions, D region width, G guide width, L token ids, A answers, S image size.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Batch:
    """Aligned images and captions: row b of every tensor belongs to pair b.

    A training batch holds pairs. An evaluation batch holds images or captions only, and the other
    fields are None. ``image_id`` and ``caption_id`` are indices within the split, from 0; pairs of
    the same image have equal ``image_id``. (The dataset's ids are in `Split.records`.) Masks are
    True for real entries and False for padding. A model reads either ``regions`` or ``pixels``, as
    its `View` declares.

    The integer fields are counted when the batch is assembled, so that a training step never has to
    wait for the device to learn them.
    """

    image_id: Tensor | None = None  # [B] int64
    caption_id: Tensor | None = None  # [B] int64

    # Images: region features or pixels
    regions: Tensor | None = None  # [B, R, D] float32, zero-padded
    region_mask: Tensor | None = None  # [B, R] bool
    region_rows: Tensor | None = None  # [B, R] int64: rows of a region array cached on the device
    guides: Tensor | None = None  # [B, G] float32: one additional vector per image
    pixels: Tensor | None = None  # [B, 3, S, S] float32, normalized; before `finish`: uint8
    # [B] int64, in the evaluation of items only: pair b has image ``pixels[image_of[b]]``, so that
    # ``pixels`` [U, 3, S, S] hold an image once. None: ``pixels[b]``.
    image_of: Tensor | None = None

    # Captions
    tokens: Tensor | None = None  # [B, L] int64, padded with the tokenizer's pad id
    token_mask: Tensor | None = None  # [B, L] bool; [CLS] and [SEP] are True
    second_tokens: Tensor | None = None  # [B, L2] int64: a second text of the same image
    second_mask: Tensor | None = None  # [B, L2] bool

    # Items of tasks other than retrieval (`itr.data.items`), A answers of all questions together
    labels: Tensor | None = None  # [B] int64: class of a statement
    second_pixels: Tensor | None = None  # [B, 3, S, S]: the second picture of a pair
    answer_tokens: Tensor | None = None  # [A, L3] int64, the answers of question 0 first
    answer_mask: Tensor | None = None  # [A, L3] bool
    answer_weights: Tensor | None = None  # [A] float32

    # Counted on the host
    answer_counts: tuple[int, ...] = ()  # answers of each question; their sum is A
    positive_pairs: int = 0  # number of True in image_id[:, None] == image_id[None, :]
    shared_pairs: int = 0  # the same count for the batch of all ranks together
    replaced: tuple[int, ...] = ()  # image ids that could not be decoded and were replaced
    min_region_length: int = 0  # smallest number of real regions in a row
    min_token_length: int = 0  # smallest number of real token ids in a row

    # Work left for the device (normalizing pixels, looking up cached regions); `to` calls it.
    finish: Callable[[Batch], Batch] | None = None

    def __len__(self) -> int:
        for ids in (self.image_id, self.caption_id):
            if ids is not None:
                return len(ids)
        return 0

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)

    def split(self, size: int) -> list[Batch]:
        """Consecutive pieces of ``size`` pairs (the last may be smaller), with the same padding."""
        starts = range(0, len(self), size)
        return [self._map(operator.itemgetter(slice(start, start + size))) for start in starts]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """A copy on ``device``, with `finish` applied there."""
        moved = self._map(lambda t: t.to(device, non_blocking=non_blocking))
        if self.finish is None:
            return moved
        return self.finish(dataclasses.replace(moved, finish=None))

    def pin_memory(self) -> Batch:
        """A copy in page-locked host memory, from which transfers to a GPU are asynchronous."""
        return self._map(lambda t: t.pin_memory())


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """``values`` as a tensor on ``device``, for which the host does not wait.

    A GPU copies them from page-locked memory. From other memory (``torch.tensor(values,
    device=device)``) the host would wait for everything that the GPU has been given before.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
