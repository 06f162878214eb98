"""Counter-based random numbers: a pure function of (seed, epoch, stream, sample, position).

A loader that uses them needs no state. Every worker, rank or resumed run gets the same number for
the same arguments, whatever the order of its calls.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# Streams: what a number is used for. Their order is part of every published result.
ORDER, CAPTION, REGION, WORD, PIECE, IMAGE, SECOND, BUCKET, SECOND_IMAGE = range(9)

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[ArrayLike, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 of four 32-bit counters (broadcast): four arrays of 32-bit words.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    words = np.broadcast_arrays(*(np.asarray(c).astype(np.uint64) & _LOW for c in counter))
    c0, c1, c2, c3 = words
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(
    seed: int, epoch: int, stream: int, sample: ArrayLike, position: ArrayLike = 0
) -> np.ndarray:
    """Uniform float64 in [0, 1) for each (sample, position); both are < 2**32 and broadcast."""
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    high, low, _, _ = philox((position, sample, epoch, stream), key)
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return bits.astype(np.float64) / 2.0**53
