"""Training pictures that cannot be decoded, as all ranks together have met them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from itr import parallel
from itr.data.images.decode import name_of
from itr.data.records import Split
from itr.errors import DataError
from itr.training.progress import log

SHOWN = 3


class BrokenPictures:
    """Counts the broken pictures of ``split``, of which those of ``known`` were found before.

    It counts what the batches that were trained on left out: the same for any number of workers,
    and for a run that was resumed.
    """

    def __init__(self, split: Split, known: Iterable[int]):
        self.split = split
        self.numbers = set(known)  # images, as far as every rank knows
        self.fresh: set[int] = set()  # those that only this rank knows

    def see(self, replaced: Iterable[int]) -> None:
        """Record the broken images that a batch of this rank ``replaced``."""
        self.fresh.update(number for number in replaced if number not in self.numbers)

    def count(self) -> int:
        """How many there are on all ranks together, which have to ask at the same time.

        Raises DataError on all of them if it is more than the split allows.
        """
        if int(parallel.all_reduce_sum(torch.tensor(len(self.fresh)))):
            for rank, own in enumerate(parallel.all_gather_objects(sorted(self.fresh))):
                self.numbers.update(own)
                if own and rank != parallel.rank():  # this rank's loader has told of its own
                    named = [name_of(self.split.records[number].image) for number in own[:SHOWN]]
                    more = ", ..." if len(own) > SHOWN else ""
                    log.warning(
                        "rank %d left out %d pictures that cannot be decoded: %s%s (broken so far, "
                        "on all ranks: %d)",
                        rank,
                        len(own),
                        "; ".join(named),
                        more,
                        len(self.numbers),
                    )
            self.fresh.clear()
        found, allowed = len(self.numbers), self.split.broken_limit
        if found > allowed:
            raise DataError(
                f"{self.split.source}: {found} of {self.split.n_images} pictures are broken; that "
                f"is more than data.max_broken allows ({allowed}). Repair them, or type a larger "
                "data.max_broken and resume=auto"
            )
        return found
