"""Classification sets that torchvision reads, with CLIP's published prompts (Radford et al., 2021).

Which split is evaluated and which accuracy is reported are ALIP's choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ClassSet:
    """``reader``: a class of torchvision.datasets, made with ``options``; ``part``: the last so
    many pictures of a random order (with ALIP's seed), None: all. ``mean_per_class``: the reported
    accuracy is the mean over classes."""

    reader: str
    templates: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    part: int | None = None
    mean_per_class: bool = False


SEED = 3072  # of the random parts


def _both(*templates: str) -> tuple[str, ...]:
    """With "a" and with "the": a template marks its article with ``[a]``."""
    return tuple(t.replace("[a]", article) for article in ("a", "the") for t in templates)


_PHOTOS = _both(
    "a photo of [a] {}.",
    "a blurry photo of [a] {}.",
    "a black and white photo of [a] {}.",
    "a low contrast photo of [a] {}.",
    "a high contrast photo of [a] {}.",
    "a bad photo of [a] {}.",
    "a good photo of [a] {}.",
    "a photo of [a] small {}.",
    "a photo of [a] big {}.",
)
_CARS = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of my {}.",
    "i love my {}!",
    "a photo of my dirty {}.",
    "a photo of my clean {}.",
    "a photo of my new {}.",
    "a photo of my old {}.",
)
_TEXTURES = _both(
    "a photo of [a] {} texture.",
    "a photo of [a] {} pattern.",
    "a photo of [a] {} thing.",
    "a photo of [a] {} object.",
)
_RENDITIONS = _both(
    "a photo of [a] {}.",
    "a painting of [a] {}.",
    "[a] plastic {}.",
    "a sculpture of [a] {}.",
    "a sketch of [a] {}.",
    "a tattoo of [a] {}.",
    "[a] toy {}.",
    "a rendition of [a] {}.",
    "[a] embroidered {}.",
    "[a] cartoon {}.",
    "[a] {} in a video game.",
    "[a] plushie {}.",
    "[a] origami {}.",
    "art of [a] {}.",
    "graffiti of [a] {}.",
    "a drawing of [a] {}.",
    "a doodle of [a] {}.",
)
TEST: Mapping[str, Any] = {"split": "test"}
SETS: dict[str, ClassSet] = {
    "cifar10": ClassSet("CIFAR10", _PHOTOS, {"train": False}),
    "cifar100": ClassSet("CIFAR100", _PHOTOS, {"train": False}),
    "food101": ClassSet("Food101", ("a photo of {}, a type of food.",), TEST),
    "pets": ClassSet("OxfordIIITPet", ("a photo of a {}, a type of pet.",), TEST, None, True),
    "flowers102": ClassSet("Flowers102", ("a photo of a {}, a type of flower.",), TEST, None, True),
    "sun397": ClassSet("SUN397", _both("a photo of [a] {}."), {}, 19850),
    "cars": ClassSet("StanfordCars", _CARS, TEST),
    "dtd": ClassSet("DTD", _TEXTURES, TEST),
    "caltech101": ClassSet("Caltech101", _RENDITIONS, {}, 5677, True),
    "aircraft": ClassSet(
        "FGVCAircraft", _both("a photo of [a] {}, a type of aircraft."), TEST, None, True
    ),
}
