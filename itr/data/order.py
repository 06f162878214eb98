"""The order of an epoch: a pure function of seed and epoch. S samples."""

from __future__ import annotations

import numpy as np

from itr.data import chance

WINDOW = 64  # shards that are mixed with each other at a time


def shuffled(seed: int, epoch: int, samples: int, shards: np.ndarray | None = None) -> np.ndarray:
    """The samples 0 .. S - 1 in the order of ``epoch``, int64 [S].

    ``shards`` [S] says which file each lies in: files are shuffled, and samples only within windows
    of `WINDOW` files, so that a disk reads a few large files at a time and not millions of places.
    Up to `WINDOW` files that is a shuffle of everything.
    """
    draws = chance.uniform(seed, epoch, chance.ORDER, np.arange(samples))
    if shards is None or (count := int(shards.max(initial=0)) + 1) <= WINDOW:
        return np.argsort(draws, kind="stable")
    # Positions beyond the samples' 0: other draws than theirs.
    places = np.argsort(chance.uniform(seed, epoch, chance.ORDER, np.arange(count), 1))
    window = np.empty(count, np.int64)
    window[places] = np.arange(count) // WINDOW
    return np.lexsort((draws, window[shards]))
