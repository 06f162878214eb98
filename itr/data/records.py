"""One index type for every format on disk, and a split made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its captions.

    ``image_id`` and ``caption_ids`` are the data set's own ids (COCO's where there are any).
    ``image`` says where the image is: a row of the split's region array, or a path.
    """

    image_id: int
    image: int | str
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Split:
    """The records of one split. Images and captions are numbered from 0 in record order; those
    numbers (not the data set's ids) are what batches and the evaluator use."""

    name: str
    layout: str  # "precomp", "karpathy", ...
    records: list[Record]
    regions: np.ndarray | None = None  # memory-mapped [rows, R, D], float32 or float16
    source: str = ""  # where it was read from, for logs and messages
    notes: tuple[str, ...] = ()  # things worth a line in the log

    def __post_init__(self) -> None:
        counts = np.array([len(record.captions) for record in self.records], dtype=np.int64)
        self.captions_per_image = counts
        self.text_to_image = np.repeat(np.arange(len(self.records)), counts)  # [C] int64
        self.first_caption = np.concatenate([[0], np.cumsum(counts)])  # [N + 1] int64

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.records)

    @property
    def n_captions(self) -> int:
        """Number of captions over all images."""
        return len(self.text_to_image)

    def captions(self) -> list[str]:
        """Every caption, image by image."""
        return [caption for record in self.records for caption in record.captions]
