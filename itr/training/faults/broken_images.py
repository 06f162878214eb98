"""Counts training images that cannot be decoded, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from itr import parallel
from itr.data.images.decode import image_name
from itr.data.records import Split
from itr.errors import DataError
from itr.training.console import log

SHOWN = 3  # file names in a warning


class BrokenImages:
    """The broken images of ``split``, starting from those already ``known``.

    Counts the images that training batches have replaced. The result does not depend on the number
    of workers or on whether the run was resumed.
    """

    def __init__(self, split: Split, known: Iterable[int]):
        self.split = split
        self.indices = set(known)  # known to every rank
        self.unshared: set[int] = set()  # known to this rank only

    def add(self, replaced: Iterable[int]) -> None:
        """Record the image indices that a batch of this rank has ``replaced``."""
        self.unshared.update(index for index in replaced if index not in self.indices)

    def synchronize(self) -> int:
        """Merge the indices of all ranks and return their number. All ranks must call it.

        Raises DataError on every rank if there are more than the split allows.
        """
        if int(parallel.all_reduce_sum(torch.tensor(len(self.unshared)))):
            for rank, indices in enumerate(parallel.all_gather_objects(sorted(self.unshared))):
                self.indices.update(indices)
                if indices and rank != parallel.rank():  # the loader has logged those of this rank
                    self._warn(rank, indices)
            self.unshared.clear()
        count, allowed = len(self.indices), self.split.broken_limit
        if count > allowed:
            raise DataError(
                f"{self.split.source}: {count} of {self.split.n_images} images cannot be decoded; "
                f"data.max_broken allows {allowed}. Repair the files, or pass a larger "
                "data.max_broken and resume=auto"
            )
        return count

    def _warn(self, rank: int, indices: Sequence[int]) -> None:
        names = [image_name(self.split.records[index].image) for index in indices[:SHOWN]]
        log.warning(
            "rank %d skipped %d images that cannot be decoded: %s%s (total on all ranks: %d)",
            rank,
            len(indices),
            "; ".join(names),
            ", ..." if len(indices) > SHOWN else "",
            len(self.indices),
        )
