"""One index type for every format on disk, and a split made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

OTHER_CAPTION = "other_caption"  # Split.second: another caption of the same image
SEQUENTIAL_ID = "numbered"  # key of a record's extra: no file gives its image_id, a running number


class Slice(NamedTuple):
    """Bytes inside a file, such as a member of a tar."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its captions.

    ``image_id`` and ``caption_ids`` are the data set's own ids (COCO's where there are any).
    ``image`` says where the image is: a row of the split's region array, a path, or a slice.
    """

    image_id: int
    image: int | str | Slice
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Split:
    """The records of one split. Images and captions are numbered from 0 in record order; those
    numbers (not the data set's ids) are what batches and the evaluator use."""

    name: str
    layout: str  # "precomp", "karpathy", ...
    records: Sequence[Record]
    regions: np.ndarray | None = None  # memory-mapped [rows, R, D], float32 or float16
    guides: np.ndarray | None = None  # [rows, G] float32: one vector more, beside the regions
    second: Sequence[str] | None = None  # a second text for each image, or OTHER_CAPTION
    broken_limit: int = 0  # pictures that training leaves out if they cannot be decoded
    decoder: str = "torchvision"  # of pictures, see itr/data/images.py
    source: str = ""  # where it was read from, for logs and messages
    notes: tuple[str, ...] = ()  # things worth a line in the log

    def __post_init__(self) -> None:
        counts = getattr(self.records, "caption_counts", None)  # known where records are made late
        if counts is None:
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

    @property
    def shard_ids(self) -> np.ndarray | None:
        """Which shard each image lies in, int64 [N]; None: it is not read from shards."""
        return getattr(self.records, "shard_ids", None)

    @property
    def texts(self) -> Sequence[str]:
        """Every caption, image by image; of millions none is copied."""
        packed = getattr(self.records, "texts", None)  # one block where records are made late
        if packed is not None:
            return packed
        return [caption for record in self.records for caption in record.captions]

    def captions(self) -> list[str]:
        """`texts` as a list."""
        return list(self.texts)

    def second_texts(self) -> Sequence[str]:
        """The second texts that are not captions anyway."""
        return [] if self.second is None or self.second == OTHER_CAPTION else self.second
