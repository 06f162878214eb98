"""Random numbers that are a pure function of where they are used.

A loader that draws them needs no state: any worker, rank or resumed run that asks for the same
(seed, epoch, sample, position) gets the same number, in whatever order it asks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# Streams: what a draw decides.
ORDER, CAPTION, REGION, WORD, PIECE, PICTURE, SECOND, BUCKET = range(8)

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[ArrayLike, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 of four 32-bit counters (broadcast together): four arrays of 32-bit words.

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
    """float64 in [0, 1) for each (sample, position), which broadcast together; both < 2**32."""
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    high, low, _, _ = philox((position, sample, epoch, stream), key)
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return bits.astype(np.float64) / 2.0**53
