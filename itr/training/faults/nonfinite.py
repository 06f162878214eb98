"""Detects batches whose loss or gradient is not finite, undoes them, and reports their ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr import parallel
from itr.data.records import Split
from itr.errors import TrainingError
from itr.training.console import log


class NonFiniteGuard:
    """Rejects a batch on all ranks if its loss is not finite on any of them.

    Buffers that its forward pass has changed (running means) are restored. Each check synchronizes
    with the device once.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.skipped = 0
        self.changing: set[str] | None = None  # buffers that a forward pass writes to
        self.saved: dict[str, Tensor] = {}

    def snapshot(self) -> None:
        """Before a forward pass: save the buffers that forward passes change (at first, all)."""
        buffers = dict(self.model.named_buffers())
        names = buffers if self.changing is None else self.changing
        self.saved = {name: buffers[name].clone() for name in names}

    def accepts(self, value: Tensor) -> bool:
        """Whether ``value`` is finite on every rank. If not, count the batch and restore buffers.

        Synchronizes all ranks.
        """
        bad = parallel.all_reduce_sum((~torch.isfinite(value.detach())).float())
        buffers = dict(self.model.named_buffers())
        if bad.item() == 0:
            if self.changing is None:  # by value: batch normalization does not bump versions
                same = {n for n, saved in self.saved.items() if torch.equal(saved, buffers[n])}
                self.changing = set(buffers) - same
            return True
        self.skipped += 1
        for name, saved in self.saved.items():
            buffers[name].copy_(saved)
        return False


def batch_ids(split: Split, images: Tensor, captions: Tensor) -> dict[str, list[Any]]:
    """The dataset's ids of one batch, gathered from all ranks.

    ``images`` and ``captions`` [B] are indices into ``split``.
    """
    records, owner = split.records, split.text_to_image
    shares = parallel.all_gather_objects((images.tolist(), captions.tolist()))
    image_ids = [records[i].image_id for share in shares for i in share[0]]
    caption_ids = [
        records[int(owner[c])].caption_ids[c - int(split.first_caption[owner[c]])]
        for share in shares
        for c in share[1]
    ]
    return {"image_ids": image_ids, "caption_ids": caption_ids}


def append_batch_ids(path: Path, updates: int, ids: dict[str, list[Any]]) -> None:
    """Append the ids of a bad batch to ``path`` as one JSON line.

    A write failure is only logged, so that it does not hide the original error.
    """
    if parallel.rank() > 0:
        return
    try:
        with open(path, "a") as file:
            file.write(json.dumps({"updates": updates, **ids}) + "\n")
    except OSError as error:
        log.warning("%s: the ids of a bad batch could not be written (%s)", path, error)


def nonfinite_error(
    updates: int, batches: int, ids: dict[str, list[Any]], path: Path
) -> TrainingError:
    """The error for the first bad batch among the last ``batches``; ``path`` lists all its ids."""
    return TrainingError(
        f"the loss or its gradient is not finite in one of the {batches} batches before update "
        f"{updates}. The first such batch has image ids {ids['image_ids'][:8]}... and caption ids "
        f"{ids['caption_ids'][:8]}... (complete list: {path}). The last checkpoint was saved "
        "before it. Inspect these samples, or try a lower optim.lr, precision=fp32 or "
        "optim.max_norm. Pass trainer.skip_nonfinite=N to skip up to N such batches"
    )
