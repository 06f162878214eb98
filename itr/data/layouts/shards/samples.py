"""The samples of shards as lazily built records. N samples, C captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from itr.data.layouts.shards.index import ShardIndex
from itr.data.packed_strings import PackedStrings
from itr.data.records import SEQUENTIAL_ID, Record, Slice
from itr.errors import DataError

SAMPLE_FIELDS = (
    "shard_ids",
    "images",
    "ids",
    "has_id",
    "caption_counts",
    "keys",
    "names",
    "second",
)
TEXT_FIELDS = ("text_ids", "texts")
VIEW_FROM = 0.5  # share of the samples above which `part` returns a view


@dataclass(frozen=True, eq=False)
class ShardSamples(Sequence[Record]):
    """Records in tar order. Missing ids are replaced by running numbers."""

    paths: list[str]
    shard_ids: np.ndarray  # [N] int64: index into ``paths``
    images: np.ndarray  # [N, 2] int64: offset and size of the image, in bytes
    ids: np.ndarray  # [N] int64
    has_id: np.ndarray  # [N] bool: whether a file gives the image id
    caption_counts: np.ndarray  # [N] int64
    text_ids: np.ndarray  # [C] int64
    keys: PackedStrings  # [N]
    names: PackedStrings  # [N]
    texts: PackedStrings  # [C]
    second: PackedStrings  # [N]
    whole: object = None  # keeps the samples alive that this is a view of; None: not a view
    starts: np.ndarray = dataclasses.field(init=False)  # [N + 1]: first caption of each sample

    @classmethod
    def of(cls, paths: Sequence[Path], indexes: Sequence[ShardIndex]) -> ShardSamples:
        """All samples of the tars ``paths``. Raises DataError for a duplicate image id."""
        ids = np.concatenate([index.ids for index in indexes])
        has_id = ids >= 0
        text_ids = np.concatenate([index.text_ids for index in indexes])
        samples = cls(
            [str(path) for path in paths],
            np.repeat(np.arange(len(indexes)), [len(index) for index in indexes]),
            np.concatenate([index.images for index in indexes]),
            np.where(has_id, ids, _running_numbers(ids)),
            has_id,
            np.concatenate([index.counts for index in indexes]),
            np.where(text_ids < 0, np.arange(len(text_ids)), text_ids),
            *(
                PackedStrings.joined([getattr(index, key) for index in indexes])
                for key in ("keys", "names", "texts", "second")
            ),
        )
        samples._require_unique_ids()
        return samples

    def _require_unique_ids(self) -> None:
        """Raise DataError if files give two samples the same image id."""
        rows = np.flatnonzero(self.has_id)
        order = rows[np.argsort(self.ids[rows], kind="stable")]
        same = np.flatnonzero(np.diff(self.ids[order]) == 0)
        if same.size:
            one, other = order[same[0] : same[0] + 2].tolist()
            raise DataError(
                f"{self.paths[self.shard_ids[other]]}: image id {self.ids[other]} of sample "
                f"{self.keys[other]} is also used by {self.keys[one]} in "
                f"{self.paths[self.shard_ids[one]]}; image ids must be unique"
            )

    def __post_init__(self) -> None:
        starts = np.concatenate([[0], np.cumsum(self.caption_counts)])
        object.__setattr__(self, "starts", starts)

    def part(self, span: slice, whole: object = None) -> ShardSamples:
        """The samples of a slice, with the same ids.

        A large part is a view, which keeps ``whole`` alive. A small part is a copy, so that a few
        thousand samples do not keep millions in memory.
        """
        first, last, _ = span.indices(len(self))
        last = max(first, last)
        texts = slice(int(self.starts[first]), int(self.starts[last]))
        fields: dict[str, Any] = {
            **{key: getattr(self, key)[first:last] for key in SAMPLE_FIELDS},
            **{key: getattr(self, key)[texts] for key in TEXT_FIELDS},
        }
        if last - first < len(self) * VIEW_FROM:
            return ShardSamples(self.paths, **{key: value.copy() for key, value in fields.items()})
        return ShardSamples(self.paths, **fields, whole=whole)

    def with_captions(self, texts: Sequence[str], counts: np.ndarray) -> ShardSamples:
        """The samples with ``counts`` [N] of the captions ``texts`` each, numbered from 0."""
        return dataclasses.replace(
            self,
            texts=PackedStrings.of(texts),
            caption_counts=counts,
            text_ids=np.arange(len(texts)),
        )

    def only(self, mask: np.ndarray) -> ShardSamples:
        """The samples where ``mask``, bool [N], is True, with the same ids."""
        if mask.all():
            return self
        rows = np.flatnonzero(mask)
        texts = np.flatnonzero(np.repeat(mask, self.caption_counts))
        return ShardSamples(
            self.paths,
            self.shard_ids[mask],
            self.images[mask],
            self.ids[mask],
            self.has_id[mask],
            self.caption_counts[mask],
            self.text_ids[texts],
            self.keys.take(rows),
            self.names.take(rows),
            self.texts.take(texts),
            self.second.take(rows),
        )

    def __len__(self) -> int:
        return len(self.shard_ids)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> ShardSamples: ...
    def __getitem__(self, index: int | slice) -> Record | ShardSamples:
        if isinstance(index, slice):
            return self.part(index)
        index = range(len(self))[index]  # handles negative indices and raises IndexError
        offset, size = self.images[index].tolist()
        texts = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return Record(
            image_id=int(self.ids[index]),
            image=Slice(self.paths[self.shard_ids[index]], offset, size),
            captions=tuple(self.texts[texts]),
            caption_ids=tuple(self.text_ids[texts].tolist()),
            extra={"file": self.names[index], "key": self.keys[index]}
            | ({} if self.has_id[index] else {SEQUENTIAL_ID: True}),
        )


def _running_numbers(ids: np.ndarray) -> np.ndarray:
    """A number for each sample [N] that no other has: above all ``ids`` or, if there is no room
    there, among those below N that are free. Negative ids are missing."""
    places = np.arange(len(ids))
    first = int(ids.max(initial=-1)) + 1
    if first + len(ids) <= np.iinfo(np.int64).max:
        return first + places
    missing = ids < 0
    free = np.setdiff1d(places, ids[~missing])[: missing.sum()]
    numbers = np.zeros(len(ids), np.int64)
    numbers[missing] = free
    return numbers
