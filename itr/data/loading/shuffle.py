"""The order of an epoch: a pure function of seed and epoch. S samples."""

from __future__ import annotations

import numpy as np

from itr.data import counter_rng

WINDOW = 64  # shards that are mixed with each other at a time


def shuffled(seed: int, epoch: int, samples: int, shards: np.ndarray | None = None) -> np.ndarray:
    """The samples 0 .. S - 1 in the order of ``epoch``, int64 [S].

    ``shards`` [S] says which file each lies in: files are shuffled, and samples only within windows
    of `WINDOW` files, so that a disk reads a few large files at a time and not millions of places.
    Up to `WINDOW` files that is a shuffle of everything.
    """
    draws = counter_rng.uniform(seed, epoch, counter_rng.ORDER, np.arange(samples))
    if shards is None or (count := int(shards.max(initial=0)) + 1) <= WINDOW:
        return np.argsort(draws, kind="stable")
    # Positions beyond the samples' 0: other draws than theirs.
    places = np.argsort(counter_rng.uniform(seed, epoch, counter_rng.ORDER, np.arange(count), 1))
    window = np.empty(count, np.int64)
    window[places] = np.arange(count) // WINDOW
    return np.lexsort((draws, window[shards]))


def bucketed(
    seed: int, epoch: int, order: np.ndarray, lengths: np.ndarray, batch_size: int, bucket: int
) -> np.ndarray:
    """``order`` with captions of like length together inside windows of ``bucket`` batches.

    ``lengths`` are those of the captions in ``order``. Within a batch the shuffled order stays, and
    the batches of a window are shuffled: which rank gets a row, and when a length comes, is still
    chance.
    """
    out = []
    for first in range(0, len(order), bucket * batch_size):
        window = slice(first, first + bucket * batch_size)
        by_length = np.argsort(lengths[window], kind="stable")
        batches = np.sort(by_length.reshape(-1, batch_size), axis=1)
        places = first + np.arange(len(batches)) * batch_size
        draws = counter_rng.uniform(seed, epoch, counter_rng.BUCKET, places)
        out.append(order[window][batches[np.argsort(draws)]].ravel())
    return np.concatenate(out)
