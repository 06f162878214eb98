"""The samples of shards as records that are made when they are asked for. N samples, C captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from itr.data.layouts.shards.index import ShardList
from itr.data.layouts.shards.packed_strings import PackedStrings
from itr.data.records import SEQUENTIAL_ID, Record, Slice
from itr.errors import DataError

OF_SAMPLES = ("shard_ids", "images", "ids", "given", "caption_counts", "keys", "names", "second")
OF_TEXTS = ("text_ids", "texts")
VIEWED = 0.5  # share of the samples from which on a part is a view of them


@dataclass(frozen=True, eq=False)
class ShardSamples(Sequence[Record]):
    """Records in the order of the tars; ids that no file gives are running numbers."""

    paths: list[str]
    shard_ids: np.ndarray  # [N] int64: which of the paths a sample lies in
    images: np.ndarray  # [N, 2] int64: where its picture begins, and its bytes
    ids: np.ndarray  # [N] int64
    given: np.ndarray  # [N] bool: whether a file gives the id
    caption_counts: np.ndarray  # [N] int64
    text_ids: np.ndarray  # [C] int64
    keys: PackedStrings  # [N]
    names: PackedStrings  # [N]
    texts: PackedStrings  # [C]
    second: PackedStrings  # [N]
    whole: object = None  # what these are a view of and keep alive; None: they are nobody's part
    starts: np.ndarray = dataclasses.field(init=False)  # [N + 1]: a sample's first caption

    @classmethod
    def of(cls, paths: Sequence[Path], lists: Sequence[ShardList]) -> ShardSamples:
        """All samples of the tars ``paths``. Raises DataError for an image id that stands twice."""
        ids = np.concatenate([shard.ids for shard in lists])
        given = ids >= 0
        first = ids.max() + 1 if given.any() else 0  # of the running numbers
        text_ids = np.concatenate([shard.text_ids for shard in lists])
        samples = cls(
            [str(path) for path in paths],
            np.repeat(np.arange(len(lists)), [len(shard) for shard in lists]),
            np.concatenate([shard.images for shard in lists]),
            np.where(given, ids, first + np.arange(len(ids))),
            given,
            np.concatenate([shard.counts for shard in lists]),
            np.where(text_ids < 0, np.arange(len(text_ids)), text_ids),
            *(
                PackedStrings.joined([getattr(shard, key) for shard in lists])
                for key in ("keys", "names", "texts", "second")
            ),
        )
        samples._require_apart()
        return samples

    def _require_apart(self) -> None:
        """Raise DataError if files give two samples the same image id."""
        places = np.flatnonzero(self.given)
        order = places[np.argsort(self.ids[places], kind="stable")]
        same = np.flatnonzero(np.diff(self.ids[order]) == 0)
        if same.size:
            one, other = order[same[0] : same[0] + 2].tolist()
            raise DataError(
                f"{self.paths[self.shard_ids[other]]}: image id {self.ids[other]} of sample "
                f"{self.keys[other]} is that of {self.keys[one]} in "
                f"{self.paths[self.shard_ids[one]]}, too; every image needs an id of its own"
            )

    def __post_init__(self) -> None:
        starts = np.concatenate([[0], np.cumsum(self.caption_counts)])
        object.__setattr__(self, "starts", starts)

    def part(self, part: slice, whole: object = None) -> ShardSamples:
        """Some of the samples, one after the other; their ids stay.

        Most of them are a view, which keeps ``whole`` alive; fewer are a copy, which does not keep
        millions in memory for a few thousand.
        """
        first, last, _ = part.indices(len(self))
        last = max(first, last)
        texts = slice(int(self.starts[first]), int(self.starts[last]))
        parts: dict[str, Any] = {
            **{key: getattr(self, key)[first:last] for key in OF_SAMPLES},
            **{key: getattr(self, key)[texts] for key in OF_TEXTS},
        }
        if last - first < len(self) * VIEWED:
            return ShardSamples(self.paths, **{key: part.copy() for key, part in parts.items()})
        return ShardSamples(self.paths, **parts, whole=whole)

    def only(self, keep: np.ndarray) -> ShardSamples:
        """The samples where ``keep`` [N] is True; their ids stay."""
        if keep.all():
            return self
        places = np.flatnonzero(keep)
        texts = np.flatnonzero(np.repeat(keep, self.caption_counts))
        return ShardSamples(
            self.paths,
            self.shard_ids[keep],
            self.images[keep],
            self.ids[keep],
            self.given[keep],
            self.caption_counts[keep],
            self.text_ids[texts],
            self.keys.take(places),
            self.names.take(places),
            self.texts.take(texts),
            self.second.take(places),
        )

    def __len__(self) -> int:
        return len(self.shard_ids)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> ShardSamples: ...
    def __getitem__(self, place: int | slice) -> Record | ShardSamples:
        if isinstance(place, slice):
            return self.part(place)
        place = range(len(self))[place]  # raises IndexError, counts from the end
        offset, size = self.images[place].tolist()
        texts = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return Record(
            image_id=int(self.ids[place]),
            image=Slice(self.paths[self.shard_ids[place]], offset, size),
            captions=tuple(self.texts[texts]),
            caption_ids=tuple(self.text_ids[texts].tolist()),
            extra={"file": self.names[place], "key": self.keys[place]}
            | ({} if self.given[place] else {SEQUENTIAL_ID: True}),
        )
