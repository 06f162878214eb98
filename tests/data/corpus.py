"""Captions of random words, the same in every process."""

import random


def corpus(n: int = 600) -> list[str]:
    rng = random.Random(3)
    words = ["".join(rng.choices("etaoinshrdlu\u00e9", k=rng.randint(1, 7))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=8)) + "." for _ in range(n)]
