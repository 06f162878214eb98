"""Captions of scenes: a small grammar with synonyms; a sentence describes part of a scene."""

from __future__ import annotations

import numpy as np

from itr.data.scenes.world import COLORS, FILLS, QUADRANTS, SHAPES, SIZES, Scene, Thing

# Words for each attribute, the most common one first.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "purple": ("purple", "violet"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "diamond": ("diamond", "rhombus"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "middling"),
    "large": ("large", "big", "huge"),
    "solid": ("solid", "filled"),
    "hollow": ("hollow", "outlined", "empty"),
}
ANYTHING = ("thing", "shape", "object")
OPENINGS = ("", "", "there is ", "a picture of ", "we see ", "this shows ")
LEFT = ("left of", "to the left of", "on the left of")
RIGHT = ("right of", "to the right of", "on the right of")
ABOVE = ("above", "over", "on top of")
BELOW = ("below", "under", "beneath")
CLUTTER = ("clipart", "free download", "vector", "wallpaper", "stock photo", "icon set")

SAY_COLOR, SAY_SHAPE, SAY_SIZE, SAY_FILL = 0.92, 0.92, 0.3, 0.3
FORMS, FORM_SHARES = ("relation", "relation and", "places", "list"), (0.25, 0.35, 0.15, 0.25)


def draw_captions(scene: Scene, number: int, rng: np.random.Generator) -> list[str]:
    """``number`` different sentences that are true of ``scene``."""
    captions: list[str] = []
    while len(captions) < number:
        if (caption := _sentence(_phrase(scene, rng), rng)) not in captions:
            captions.append(caption)
    return captions


def draw_synthetic(scene: Scene, rng: np.random.Generator) -> str:
    """A plain caption such as a captioning model gives: two or three things, color and shape."""
    things = _some(scene, 3, rng)
    named = [_with_article(f"{COLORS[t.color]} {SHAPES[t.shape]}") for t in things]
    return _join(named)


def draw_raw(scene: Scene, rng: np.random.Generator) -> str:
    """Noisy text as found beside images on the web: keywords and clutter."""
    words = [f"{COLORS[t.color]} {SHAPES[t.shape]}" for t in _some(scene, 2, rng)]
    words.append(_pick(CLUTTER, rng))
    return " ".join([*(words[i] for i in rng.permutation(len(words))), str(rng.integers(1000))])


def words_of(caption: str) -> list[str]:
    """The words of a caption as in Karpathy's files: lower case, without punctuation."""
    return caption.lower().replace(",", " ").replace(".", " ").split()


def _sentence(phrase: str, rng: np.random.Generator) -> str:
    text = _pick(OPENINGS, rng) + phrase
    return text[0].upper() + text[1:] + "."


def _phrase(scene: Scene, rng: np.random.Generator) -> str:
    form = str(rng.choice(FORMS, p=FORM_SHARES))
    if form == "list":
        return _join([_name(thing, rng) for thing in _some(scene, 3, rng)])
    if form == "places":
        return _join(
            [f"{_name(t, rng)} at the {QUADRANTS[t.quadrant]}" for t in _some(scene, 2, rng)]
        )
    first, second, *third = _some(scene, 3 if form == "relation and" else 2, rng)
    phrase = f"{_name(first, rng)} {_relation(first, second, rng)} {_name(second, rng)}"
    return _join([phrase, *(_name(thing, rng) for thing in third)])


def _name(thing: Thing, rng: np.random.Generator) -> str:
    """Name a thing by some of its attributes, always by its color or its shape."""
    color, shape, size, fill = rng.random(4) < (SAY_COLOR, SAY_SHAPE, SAY_SIZE, SAY_FILL)
    words = []
    if size:
        words.append(_word(SIZES[thing.size], rng))
    if fill:
        words.append(_word(FILLS[thing.fill], rng))
    if color or not shape:
        words.append(_word(COLORS[thing.color], rng))
    words.append(_word(SHAPES[thing.shape], rng) if shape else _pick(ANYTHING, rng))
    return _with_article(" ".join(words))


def _relation(first: Thing, second: Thing, rng: np.random.Generator) -> str:
    relations = []
    if first.column != second.column:
        relations.append(LEFT if first.column < second.column else RIGHT)
    if first.row != second.row:
        relations.append(ABOVE if first.row < second.row else BELOW)
    return _pick(relations[rng.integers(len(relations))], rng)


def _some(scene: Scene, most: int, rng: np.random.Generator) -> list[Thing]:
    return [scene[index] for index in rng.permutation(len(scene))[:most]]


def _word(name: str, rng: np.random.Generator) -> str:
    return _pick(SYNONYMS.get(name, (name,)), rng)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
