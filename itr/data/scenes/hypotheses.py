"""Hypotheses about scenes (visual entailment), in the format of ALBEF's lists for SNLI-VE.

What a picture does not decide is behind a grey panel that covers one quarter. The same sentence is
entailed, contradicted or neutral, depending on the picture. Every picture has a panel: if some had
none, the panel alone would tell which hypotheses are neutral.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from itr.data.scenes.balance import choose_balanced, new_cells
from itr.data.scenes.known_scenes import KnownScene, color, relations, shape
from itr.data.scenes.world import COLORS, QUADRANTS, SHAPES, Scene, Thing

PER_PICTURE = 4  # hypotheses about a scene, on average
PANELS = 2  # pictures of a scene, each with another quarter covered
LABELS = ("contradiction", "neutral", "entailment")
# The labels that a hypothesis of each kind may have. Behind the panel may be anything, so that no
# picture contradicts "there is a red star" and none entails "there is no red star".
KINDS = {
    "existence": ("neutral", "entailment"),
    "absence": ("contradiction", "neutral"),
    "place": LABELS,
    "relation": LABELS,
}
SHARES = {"existence": 1 / 6, "absence": 1 / 6, "place": 1 / 3, "relation": 1 / 3}
GREY = (128, 128, 128)
COVERED_THING = 0.8  # share of the panels that cover a thing; the others cover an empty quarter
SPLIT_FILES = {"train": "ve_train.json", "val": "ve_dev.json", "test": "ve_test.json"}


class PanelView(NamedTuple):
    """A picture of a scene with a covered quarter."""

    file: str
    scene: Scene
    panel: int  # the covered quarter

    def visible(self) -> list[Thing]:
        """The things that can be seen."""
        return [thing for thing in self.scene if thing.quadrant != self.panel]


def write_hypotheses(
    scenes: dict[str, list[KnownScene]], seed: Sequence[int], source: Path, draft: Path, name: str
) -> dict[str, Any]:
    """File name -> content: the hypotheses of each split.

    The covered pictures are written to ``draft``, the later folder ``name`` of the dataset
    ``source``.
    """
    (draft / "covered").mkdir()
    files: dict[str, Any] = {}
    for stream, (split, known) in enumerate(scenes.items()):
        rng = np.random.default_rng([*seed, stream])
        views = []
        for entry in known:
            original = (source / entry.file).read_bytes()
            for panel in draw_panels(entry.scene, rng):
                file = f"covered/{PurePath(entry.file).stem}-{panel}.jpg"
                (draft / file).write_bytes(cover(original, panel))
                views.append(PanelView(f"{name}/{file}", entry.scene, panel))
        files[SPLIT_FILES[split]] = _rows(views, rng)
    return files


def draw_panels(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Different quarters to cover, one for each picture of a scene."""
    left = list(range(len(QUADRANTS)))
    panels: list[int] = []
    for _ in range(PANELS):
        taken = [quadrant for quadrant in left if any(t.quadrant == quadrant for t in scene)]
        free = [quadrant for quadrant in left if quadrant not in taken]
        covers_thing = taken and (not free or rng.random() < COVERED_THING)
        quarters = taken if covers_thing else free
        panels.append(quarters[rng.integers(len(quarters))])
        left.remove(panels[-1])
    return panels


def cover(jpeg: bytes, panel: int) -> bytes:
    """The picture with a grey panel over one quarter, as a JPEG."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    width, height = image.width // 2, image.height // 2
    left, top = (panel % 2) * width, (panel // 2) * height
    corners = (left, top, left + width - 1, top + height - 1)
    ImageDraw.Draw(image).rectangle(corners, fill=GREY)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _rows(views: Sequence[PanelView], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Hypotheses of all kinds, in random order."""
    cells = {kind: new_cells() for kind in KINDS}
    for index, view in enumerate(views):
        for kind, text, label in hypotheses_of(view):
            cells[kind][text][label].append(index)
    rows: list[dict[str, Any]] = []
    scenes = len(views) // PANELS
    for kind, labels in KINDS.items():
        total = round(PER_PICTURE * scenes * SHARES[kind])
        chosen = choose_balanced(cells[kind], len(labels), total, scenes, rng)
        for text, label, index in chosen:
            image = views[index].file.removesuffix(".jpg")
            rows.append({"image": image, "sentence": text, "label": label, "kind": kind})
    return [rows[index] for index in rng.permutation(len(rows))]


def hypotheses_of(view: PanelView) -> Iterator[tuple[str, str, str]]:
    """All hypotheses about a picture: kind, sentence, label."""
    visible = view.visible()
    yield from _existence(visible)
    for quadrant, name in enumerate(QUADRANTS):
        there = [thing for thing in view.scene if thing.quadrant == quadrant]
        if there:  # otherwise "the thing at the top left" is nothing
            for values, attribute in ((COLORS, color), (SHAPES, shape)):
                for value in values:
                    noun = value if attribute is color else f"a {value}"
                    label = (
                        LABELS[1]
                        if quadrant == view.panel
                        else _label(attribute(there[0]) == value)
                    )
                    yield "place", f"the thing at the {name} is {noun}", label
    yield from _relations(view, visible)


def _existence(visible: Sequence[Thing]) -> Iterator[tuple[str, str, str]]:
    """ "There is a red star", "there is no red star": what is not seen may be behind the panel."""
    seen = {(color(thing), shape(thing)) for thing in visible}
    for c in COLORS:
        for s in SHAPES:
            article = "an" if c[0] in "aeiou" else "a"
            is_seen = (c, s) in seen
            label = "entailment" if is_seen else "neutral"
            yield "existence", f"there is {article} {c} {s}", label
            label = "contradiction" if is_seen else "neutral"
            yield "absence", f"there is no {c} {s}", label


def _relations(view: PanelView, visible: Sequence[Thing]) -> Iterator[tuple[str, str, str]]:
    """Relations of two things. If one of them is behind the panel, the picture decides nothing:
    the panel is where the sentence says, but what is behind it cannot be seen."""
    for first in view.scene:
        for second in view.scene:
            for relation, holds in relations(first, second):
                text = f"the {shape(first)} is {relation} the {shape(second)}"
                if first in visible and second in visible:
                    yield "relation", text, _label(holds)
                elif holds:
                    yield "relation", text, "neutral"


def _label(holds: bool) -> str:
    return "entailment" if holds else "contradiction"
