"""Records and splits: the index that every on-disk layout is read into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from itr.data.items import Item

OTHER_CAPTION = "other_caption"  # Split.second: another caption of the same image
SEQUENTIAL_ID = "sequential_id"  # key of Record.extra: the image_id is a running number, since
# no file gives one


class Slice(NamedTuple):
    """A byte range of a file, such as a tar member."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its captions.

    ``image_id`` and ``caption_ids`` are the ids of the dataset (COCO's ids for COCO). ``image`` is
    a row of the split's region array, a path, or a byte range of a file.
    """

    image_id: int
    image: int | str | Slice
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Split:
    """The records of one split: N images and C captions.

    Batches and the evaluator number images and captions from 0 in record order; these indices are
    not the ids of the dataset.
    """

    name: str
    layout: str  # "precomp", "karpathy", ...
    records: Sequence[Record]
    regions: np.ndarray | None = None  # memory-mapped [rows, R, D], float32 or float16
    guides: np.ndarray | None = None  # [rows, G] float32: a vector per row of the region array
    second: Sequence[str] | None = None  # a second text per image, or OTHER_CAPTION
    broken_limit: int = 0  # undecodable images that training tolerates
    decoder: str = "torchvision"  # of images, see itr/data/images/decode.py
    source: str = ""  # file or folder, for logs and messages
    notes: tuple[str, ...] = ()  # log lines
    items: Sequence[Item] | None = None  # one per caption, for tasks other than retrieval

    def __post_init__(self) -> None:
        counts = getattr(self.records, "caption_counts", None)  # records that are built lazily
        if counts is None:
            counts = np.array([len(record.captions) for record in self.records], dtype=np.int64)
        self.captions_per_image = counts
        self.text_to_image = np.repeat(np.arange(len(self.records)), counts)  # [C] int64
        self.first_caption = np.concatenate([[0], np.cumsum(counts)])  # [N + 1] int64

    @property
    def n_images(self) -> int:
        """Number of images N."""
        return len(self.records)

    @property
    def n_captions(self) -> int:
        """Number of captions C over all images."""
        return len(self.text_to_image)

    @property
    def shard_ids(self) -> np.ndarray | None:
        """Index of the shard of each image, int64 [N]; None for other layouts."""
        return getattr(self.records, "shard_ids", None)

    @property
    def texts(self) -> Sequence[str]:
        """All captions, image by image. Shards return a view that copies no caption."""
        packed = getattr(self.records, "texts", None)
        if packed is not None:
            return packed
        return [caption for record in self.records for caption in record.captions]

    def captions(self) -> list[str]:
        """`texts` as a list."""
        return list(self.texts)

    def second_texts(self) -> Sequence[str]:
        """The second texts; empty if there are none or if they are other captions."""
        return [] if self.second is None or self.second == OTHER_CAPTION else self.second
