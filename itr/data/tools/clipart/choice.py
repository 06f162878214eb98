"""Which drawings are kept, and their splits: drawings of one concept or look stay together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from itr.data.tools.clipart.metadata import Drawing
from itr.data.tools.clipart.wording import slug

SEED = 20240607
TEST, VAL = 0.12, 0.10  # shares of the concepts
PER_TITLE = 3  # drawings with the same title


def fraction(text: str) -> float:
    """A pseudo-random number in [0, 1), a function of ``text`` alone."""
    return int(hashlib.sha1(f"{SEED}:{text}".encode()).hexdigest()[:12], 16) / 16**12


def choose(drawings: Iterable[Drawing], limit: int | None, left_out: Counter[str]) -> list[Drawing]:
    """The drawings of the dataset in their order, with group, split and name set.

    At most ``limit``, before the second drawings of a concept leave val and test. ``left_out``
    counts the others by reason.
    """
    usable = [drawing for drawing in drawings if drawing.concept]
    _set_groups(usable)
    usable.sort(key=lambda drawing: (-len(drawing.captions), fraction(drawing.file)))
    kept, titles = [], Counter[str]()
    for drawing in usable:
        titles[drawing.concept] += 1
        if titles[drawing.concept] <= PER_TITLE:
            kept.append(drawing)
    left_out[f"title already used {PER_TITLE} times"] += len(usable) - len(kept)
    kept.sort(key=lambda drawing: fraction("order" + drawing.file))
    left_out["beyond --limit"] += len(kept) - len(kept[:limit])
    kept = kept[:limit]
    spread = _split(kept)
    left_out["second drawing of a concept in val or test"] += len(kept) - len(spread)
    _set_names(spread)
    return spread


def _set_groups(drawings: Sequence[Drawing]) -> None:
    """One group for all that are linked by the same concept or the same look (union-find)."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for drawing in drawings:
        assert drawing.picture is not None
        one, other = find("k:" + drawing.concept), find("d:" + drawing.picture.looks)
        if one != other:
            parent[max(one, other)] = min(one, other)
    for drawing in drawings:
        drawing.group = find("k:" + drawing.concept)


def _split(drawings: Sequence[Drawing]) -> list[Drawing]:
    """``drawings`` with their splits; val and test keep the first of each concept."""
    kept, used = [], set()
    for drawing in drawings:
        place = fraction("split" + drawing.group)
        drawing.split = "test" if place < TEST else "val" if place < TEST + VAL else "train"
        if drawing.split == "train" or drawing.group not in used:
            kept.append(drawing)
        if drawing.split != "train":
            used.add(drawing.group)
    return kept


def _set_names(drawings: Sequence[Drawing]) -> None:
    """File names from the upper folder and the drawing's own name, each once."""
    names: set[str] = set()
    for drawing in drawings:
        parts = drawing.file.split("/")
        base = slug(f"{parts[0]}_{parts[-1][:-4]}")
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.add(name)
        drawing.name = f"{name}.jpg"
