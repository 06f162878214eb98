"""What happened since the last logging: kept on the device, read in one transfer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr import parallel
from itr.data.records import Split
from itr.errors import TrainingError
from itr.training.progress import log


class Window:
    """Running sums of the logged values; totals and ids of every batch, to find a broken one."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.totals: list[Tensor] = []
        self.batches: list[tuple[Tensor, Tensor]] = []  # image and caption ids, on the host
        self.pairs = 0
        self.started = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add detached scalars to the running sums."""
        for key, value in values.items():
            value = value.detach().float()
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1

    def read(self) -> tuple[dict[str, float], int | None]:
        """Means of the values over all ranks, and the first batch whose total was not finite on
        some rank (or None)."""
        keys = list(self.sums)
        flat = torch.stack([self.sums[key] for key in keys] + self.totals)
        parallel.all_reduce_mean([flat])
        numbers = flat.tolist()
        means = {key: numbers[i] / self.counts[key] for i, key in enumerate(keys)}
        totals = torch.tensor(numbers[len(keys) :])
        bad = (~torch.isfinite(totals)).nonzero()
        return means, int(bad[0]) if len(bad) else None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The running sums, for a checkpoint that is written between two loggings."""
        return dict(self.sums), {"counts": self.counts, "pairs": self.pairs}

    def restore(self, sums: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on from what `state` gave; the batches before it were checked when it was saved."""
        self.sums, self.counts, self.pairs = sums, dict(meta["counts"]), meta["pairs"]


def name_batch(split: Split, images: Tensor, captions: Tensor) -> dict[str, list[Any]]:
    """The data set's own ids of one batch, that of all ranks; ``images`` and ``captions`` [B]
    count inside ``split``."""
    records, owner = split.records, split.text_to_image
    shares = parallel.all_gather_objects((images.tolist(), captions.tolist()))
    image_ids = [records[i].image_id for share in shares for i in share[0]]
    caption_ids = [
        records[int(owner[c])].caption_ids[c - int(split.first_caption[owner[c]])]
        for share in shares
        for c in share[1]
    ]
    return {"image_ids": image_ids, "caption_ids": caption_ids}


def keep_ids(path: Path, updates: int, ids: dict[str, list[Any]]) -> None:
    """Append the ids of a batch that broke to ``path``, one JSON object a line; where that fails
    a warning says so, since there is something more important to say."""
    if parallel.rank() > 0:
        return
    try:
        with open(path, "a") as file:
            file.write(json.dumps({"updates": updates, **ids}) + "\n")
    except OSError as error:
        log.warning("%s: the ids of a batch could not be written (%s)", path, error)


def not_finite(updates: int, batches: int, ids: dict[str, list[Any]], path: Path) -> TrainingError:
    """What a person should know and do."""
    return TrainingError(
        f"the loss or its gradient is not finite within the {batches} batches "
        f"before update {updates}; the first such batch has image ids "
        f"{ids['image_ids'][:8]}... and caption ids {ids['caption_ids'][:8]}... (all in {path}). "
        "The last checkpoint is from before it. Look at these samples, or try a lower "
        "optim.lr, precision=fp32, or optim.clip_norm; trainer.skip_nonfinite=N leaves out up to "
        "N such batches"
    )
