"""Detects batches whose loss or gradient is not finite, undoes them, and reports their ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from itr import parallel
from itr.data.records import Split
from itr.errors import TrainingError
from itr.training.console import log

NOT_FINITE = "not_finite.json"
Batches = Sequence[tuple[Tensor, Tensor]]  # image and caption indices of each micro-batch


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


class NonFiniteReport:
    """Names the batches that were not finite in a file of the run directory.

    Its methods take the micro-batches of the log window as pairs of image and caption indices, and
    must be called on all ranks.
    """

    def __init__(self, folder: Path, split: Split, limit: int):
        self.path, self.split, self.limit = folder / NOT_FINITE, split, limit

    def skipped(self, updates: int, batches: Batches, guard: NonFiniteGuard | None) -> None:
        """Log that the newest of ``batches`` was skipped. Raises TrainingError if ``guard`` has
        skipped more than the limit."""
        assert guard is not None
        if guard.skipped > self.limit:
            self.fail(updates, batches, len(batches) - 1)
        append_batch_ids(self.path, updates, batch_ids(self.split, *batches[-1]))
        log.warning(
            "update %d: skipped a batch whose loss or gradient is not finite (%d so far, "
            "trainer.skip_nonfinite=%d); its ids are in %s",
            updates,
            guard.skipped,
            self.limit,
            self.path,
        )

    def fail(self, updates: int, batches: Batches, index: int) -> NoReturn:
        """Raise TrainingError for ``batches[index]``, the first that was not finite."""
        ids = batch_ids(self.split, *batches[index])
        append_batch_ids(self.path, updates, ids)
        raise TrainingError(
            f"the loss or its gradient is not finite in one of the {len(batches)} batches before "
            f"update {updates}. The first such batch has image ids {ids['image_ids'][:8]}... and "
            f"caption ids {ids['caption_ids'][:8]}... (complete list: {self.path}). The last "
            "checkpoint was saved before it. Inspect these samples, or try a lower optim.lr, "
            "precision=fp32 or optim.max_norm. Pass trainer.skip_nonfinite=N to skip up to N such "
            "batches"
        )


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
