"""Which captions say left or right, so that a flipped image would contradict them."""

from __future__ import annotations

import re

import numpy as np

from itr.data.records import Split

SIDES = re.compile(r"\b(left|right)(most|wards?)?\b", re.IGNORECASE)


def find_sided(split: Split) -> np.ndarray:
    """Whether each caption of ``split``, or an answer to it, names a side; bool [C]."""
    sided = np.fromiter((SIDES.search(text) is not None for text in split.texts), bool)
    for index, item in enumerate(split.items or ()):
        votes = getattr(item, "votes", ())
        sided[index] |= any(SIDES.search(vote) for vote in votes)
    return sided
