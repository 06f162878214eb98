"""Chooses items so that their words alone do not give the answer away."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

SLACK = 0.03  # by which the most frequent answer to a text may exceed its fair share
SMALL = 100  # pictures; with fewer, not every text meets every answer and all texts are used

Cells = dict[str, dict[str, list[int]]]  # text -> answer -> indices of the pictures


class Choice(NamedTuple):
    """A text with the answer that is right for the picture of this index."""

    text: str
    answer: str
    picture: int


def new_cells() -> Cells:
    """Empty cells, to be filled with the pictures for which an answer to a text is right."""
    return defaultdict(lambda: defaultdict(list))


def choose_balanced(
    cells: Cells, answers: int, total: int, pictures: int, rng: np.random.Generator
) -> list[Choice]:
    """Some of the items in ``cells``, in random order: of each text, every answer equally often.

    The best guess that knows the text is right at most ``1 / answers + SLACK`` of the time. A text
    that cannot be balanced is left out.

    Args:
        cells: all possible items.
        answers: number of possible answers.
        total: about how many items are chosen.
        pictures: number of pictures they are about.
        rng: draws the items.
    """
    chosen: list[Choice] = []
    most = max(1, round(total / (max(1, len(cells)) * answers)))
    for text, by_answer in cells.items():
        limit = _limit(np.array([len(members) for members in by_answer.values()]), most, answers)
        if limit == 0 and pictures < SMALL:
            limit = 1
        for answer, members in by_answer.items():
            drawn = rng.permutation(len(members))[:limit].tolist()
            chosen += [Choice(text, answer, members[index]) for index in drawn]
    return [chosen[index] for index in rng.permutation(len(chosen))]


def _limit(counts: np.ndarray, most: int, answers: int) -> int:
    """The largest number per answer, up to ``most``, at which no answer is too frequent; or 0."""
    for limit in range(most, 0, -1):
        capped = np.minimum(counts, limit)
        if capped.max() <= (1 / answers + SLACK) * capped.sum():
            return limit
    return 0
