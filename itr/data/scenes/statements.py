"""Statements about pairs of scenes (NLVR2), in the format of ALBEF's lists.

Each statement is about four pairs: it is true of two of them and false of the others. Where it says
left or right, a false pair is often a true one in the other order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from itr.data.scenes.known_scenes import KnownScene, color, fill, shape, size
from itr.data.scenes.world import COLORS, FILLS, SHAPES, SIZES, Scene, Thing

PER_PICTURE = 3  # pairs, on average
OF_EACH = 2  # true pairs of a statement, and as many false ones
TRIES = 500  # pairs that are drawn for a statement
SPLIT_FILES = {"train": "nlvr_train.json", "val": "nlvr_dev.json", "test": "nlvr_test.json"}
ATTRIBUTES = ((color, COLORS), (shape, SHAPES), (fill, FILLS), (size, SIZES))
Truth = Callable[[Scene, Scene], bool]


class Claim(NamedTuple):
    """A statement about a left and a right picture."""

    text: str
    truth: Truth


def write_statements(scenes: dict[str, list[KnownScene]], seed: Sequence[int]) -> dict[str, Any]:
    """File name -> content: the statements of each split."""
    files = {}
    for stream, (split, known) in enumerate(scenes.items()):
        rng = np.random.default_rng([*seed, stream])
        files[SPLIT_FILES[split]] = _rows(SPLIT_FILES[split], known, rng)
    return files


def _rows(file: str, known: Sequence[KnownScene], rng: np.random.Generator) -> list[dict[str, Any]]:
    if len(known) < 2:
        return []
    rows: list[dict[str, Any]] = []
    prefix = file.removesuffix(".json").replace("nlvr_", "")
    for number in range(PER_PICTURE * len(known) // (2 * OF_EACH)):
        claim, pairs = _draw(known, rng)
        for pair, (left, right, label) in enumerate(pairs):
            rows.append(
                {
                    "identifier": f"{prefix}-{number}-{pair}-0",
                    "images": [known[left].file, known[right].file],
                    "sentence": claim.text,
                    "label": str(label),
                }
            )
    return [rows[index] for index in rng.permutation(len(rows))]


def _draw(
    known: Sequence[KnownScene], rng: np.random.Generator
) -> tuple[Claim, list[tuple[int, int, bool]]]:
    """A statement with pairs (left, right, whether it is true) of pictures."""
    while True:
        claim = draw_claim(rng)
        pairs: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for _ in range(TRIES):
            left, right = rng.choice(len(known), 2, replace=False).tolist()
            for pair in ((left, right), (right, left)):
                label = claim.truth(known[pair[0]].scene, known[pair[1]].scene)
                if len(pairs[label]) < OF_EACH and pair not in pairs[label]:
                    pairs[label].append(pair)
                    break  # the other order only if this one is not needed
            else:
                continue
            flipped = (pair[1], pair[0])
            opposite = claim.truth(known[flipped[0]].scene, known[flipped[1]].scene)
            if opposite != label and len(pairs[opposite]) < OF_EACH:
                pairs[opposite].append(flipped)
            if all(len(found) == OF_EACH for found in pairs.values()):
                drawn = [(*pair, label) for label, found in pairs.items() for pair in found]
                return claim, [drawn[index] for index in rng.permutation(len(drawn))]


def draw_claim(rng: np.random.Generator) -> Claim:
    """A random statement."""
    makers = (_each, _side, _only_one, _more, _exactly, _same_number)
    return makers[rng.integers(len(makers))](rng)


def _each(rng: np.random.Generator) -> Claim:
    noun, matches = _noun(rng)
    return Claim(
        f"each picture has {noun}", lambda left, right: _has(left, matches) and _has(right, matches)
    )


def _side(rng: np.random.Generator) -> Claim:
    noun, matches = _noun(rng)
    if rng.integers(2):
        return Claim(f"the left picture has {noun}", lambda left, _: _has(left, matches))
    return Claim(f"the right picture has {noun}", lambda _, right: _has(right, matches))


def _only_one(rng: np.random.Generator) -> Claim:
    noun, matches = _noun(rng)
    return Claim(
        f"only one picture has {noun}",
        lambda left, right: _has(left, matches) != _has(right, matches),
    )


def _more(rng: np.random.Generator) -> Claim:
    adjective, matches = _adjective(rng)
    more, less = ("left", "right") if rng.integers(2) else ("right", "left")
    text = f"the {more} picture has more {adjective}things than the {less} picture"

    def truth(left: Scene, right: Scene) -> bool:
        difference = _count(left, matches) - _count(right, matches)
        return difference > 0 if more == "left" else difference < 0

    return Claim(text, truth)


def _exactly(rng: np.random.Generator) -> Claim:
    adjective, matches = _adjective(rng)
    number = int(rng.integers(2, 6))
    words = ("two", "three", "four", "five")
    return Claim(
        f"there are exactly {words[number - 2]} {adjective}things in the two pictures",
        lambda left, right: _count(left, matches) + _count(right, matches) == number,
    )


def _same_number(rng: np.random.Generator) -> Claim:
    adjective, matches = _adjective(rng)
    return Claim(
        f"both pictures have the same number of {adjective}things",
        lambda left, right: _count(left, matches) == _count(right, matches),
    )


Matches = Callable[[Thing], bool]


def _noun(rng: np.random.Generator) -> tuple[str, Matches]:
    """A color or a shape, as a noun with its article, and which things it names."""
    attribute, values = ATTRIBUTES[rng.integers(2)]
    value = values[rng.integers(len(values))]
    article = "an" if value[0] in "aeiou" else "a"
    noun = f"{article} {value} thing" if attribute is color else f"{article} {value}"
    return noun, lambda thing: attribute(thing) == value


def _adjective(rng: np.random.Generator) -> tuple[str, Matches]:
    """A fill, a size or nothing, with a space behind it, and which things it applies to."""
    choices = [("", ""), *((v, v) for _, values in ATTRIBUTES[2:] for v in values)]
    value, word = choices[rng.integers(len(choices))]
    if not value:
        return "", lambda thing: True
    return f"{word} ", lambda thing: value in (fill(thing), size(thing))


def _has(scene: Scene, matches: Matches) -> bool:
    return any(matches(thing) for thing in scene)


def _count(scene: Scene, matches: Matches) -> int:
    return sum(matches(thing) for thing in scene)
