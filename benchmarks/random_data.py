"""Random datasets and batches for the benchmarks.

N images, five captions each; R regions of width W.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.io import write_png

from itr.batch import Batch
from itr.data.images.regions import Regions
from itr.data.records import Record, Split
from itr.data.text.token_table import CaptionPadder, TokenTable
from itr.view import View

CAPTIONS = 5


def _records(places: list[int] | list[str]) -> list[Record]:
    return [
        Record(
            image_id=i,
            image=place,
            captions=("",) * CAPTIONS,
            caption_ids=tuple(range(CAPTIONS * i, CAPTIONS * (i + 1))),
        )
        for i, place in enumerate(places)
    ]


def region_split(images: int, regions: int, width: int) -> Split:
    """``images`` images of random regions."""
    random = np.random.default_rng(0)
    values = random.standard_normal((images, regions, width), dtype=np.float32)
    places = list(range(images))
    return Split("test", "precomp", _records(places), regions=values, source="random regions")


def image_split(images: int, size: int, folder: Path) -> Split:
    """``images`` random images, PNG files in ``folder``."""
    random = torch.Generator().manual_seed(0)
    places = []
    for i in range(images):
        # Coarse noise; every encoder averages fine noise away.
        coarse = torch.rand(1, 3, 6, 6, generator=random)
        picture = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
        places.append(str(folder / f"{i}.png"))
        write_png((picture[0] * 255).to(torch.uint8), places[-1])
    return Split("test", "karpathy", _records(places), source="random images")


@dataclass(frozen=True)
class Words:
    """Random captions of ``shortest`` to ``longest`` ids of a ``vocabulary``. They begin with
    ``first`` and end with ``last`` (None: any id)."""

    vocabulary: int
    shortest: int = 8
    longest: int = 24
    pad: int = 0
    first: int | None = None
    last: int | None = None

    def table(self, captions: int, seed: int = 0) -> TokenTable:
        """Ids of ``captions`` captions. The first has ``longest`` ids, the second ``shortest``."""
        random = np.random.default_rng(seed)
        lengths = random.integers(self.shortest, self.longest + 1, captions)
        lengths[:2] = self.longest, self.shortest
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        known = [i for i in (self.pad, self.first, self.last) if i is not None]
        low = 1 + max((i for i in known if i < self.vocabulary // 2), default=0)
        high = min((i for i in known if i >= self.vocabulary // 2), default=self.vocabulary)
        flat = random.integers(low, high, offsets[-1]).astype(np.int32)
        if self.first is not None:
            flat[offsets[:-1]] = self.first
        if self.last is not None:
            flat[offsets[1:] - 1] = self.last
        return TokenTable(flat, np.full_like(flat, -1), offsets, self.pad)


def text_fields(table: TokenTable, view: View, captions: np.ndarray) -> dict[str, torch.Tensor]:
    """The token fields of a training `Batch`."""
    places, lengths = table.positions(captions)
    return CaptionPadder(table, view.text).fields(table.flat[places], lengths)


def region_batch(split: Split, table: TokenTable, view: View, pairs: int) -> Batch:
    """``pairs`` pairs, with the region dropout of ``view``."""
    random, images = np.random.default_rng(1), np.arange(pairs)
    keep = random.random((pairs, split.regions.shape[1])) >= view.regions.drop
    keep[:, : max(1, view.regions.min_pad)] = True
    fields = Regions(split).fields(images, keep, view.regions.min_pad)
    return Batch(
        image_id=torch.from_numpy(images),
        caption_id=torch.from_numpy(CAPTIONS * images),
        positive_pairs=pairs,
        **fields,
        **text_fields(table, view, images),
    )


def pixel_batch(size: int, table: TokenTable, view: View, pairs: int) -> Batch:
    """``pairs`` pairs of random pixels, with a second text if ``view`` has one."""
    random, images = torch.Generator().manual_seed(1), np.arange(pairs)
    coarse = torch.randn(pairs, 3, 6, 6, generator=random)
    batch = Batch(
        image_id=torch.from_numpy(images),
        caption_id=torch.from_numpy(CAPTIONS * images),
        pixels=torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear"),
        positive_pairs=pairs,
        **text_fields(table, view, images),
    )
    if view.second_text is not None:
        second = text_fields(table, view, images + pairs)
        batch.second_tokens, batch.second_mask = second["tokens"], second["token_mask"]
    return batch
