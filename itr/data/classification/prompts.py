"""Classification datasets of torchvision with CLIP's published prompts (Radford et al., 2021).

The evaluated split and the reported accuracy follow ALIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ClassificationSpec:
    """How a torchvision dataset is read and evaluated.

    ``reader`` is a class of ``torchvision.datasets``, created with ``options``. ``subset``: use the
    last so many images of a random order (with ALIP's seed); None: all images.
    ``mean_per_class``: the reported accuracy is the mean over classes.
    """

    reader: str
    templates: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    subset: int | None = None
    mean_per_class: bool = False


SEED = 3072  # of the random order of subsets


def _both(*templates: str) -> tuple[str, ...]:
    """Expand each template with "a" and with "the" in place of ``[a]``."""
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
DATASETS: dict[str, ClassificationSpec] = {
    "cifar10": ClassificationSpec("CIFAR10", _PHOTOS, {"train": False}),
    "cifar100": ClassificationSpec("CIFAR100", _PHOTOS, {"train": False}),
    "food101": ClassificationSpec("Food101", ("a photo of {}, a type of food.",), TEST),
    "pets": ClassificationSpec(
        "OxfordIIITPet", ("a photo of a {}, a type of pet.",), TEST, None, True
    ),
    "flowers102": ClassificationSpec(
        "Flowers102", ("a photo of a {}, a type of flower.",), TEST, None, True
    ),
    "sun397": ClassificationSpec("SUN397", _both("a photo of [a] {}."), {}, 19850),
    "cars": ClassificationSpec("StanfordCars", _CARS, TEST),
    "dtd": ClassificationSpec("DTD", _TEXTURES, TEST),
    "caltech101": ClassificationSpec("Caltech101", _RENDITIONS, {}, 5677, True),
    "aircraft": ClassificationSpec(
        "FGVCAircraft", _both("a photo of [a] {}, a type of aircraft."), TEST, None, True
    ),
}
