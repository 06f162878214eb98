"""Hypotheses about scenes (visual entailment), in the format of ALBEF's lists for SNLI-VE.

What a picture does not decide is behind a grey panel that covers one quarter. The same sentence is
entailed, contradicted or neutral, depending on the picture.
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

PER_PICTURE = 4  # hypotheses, on average
LABELS = ("contradiction", "neutral", "entailment")
KINDS = ("existence", "place", "relation")
GREY = (128, 128, 128)
COVERED_THING = 0.8  # share of the panels that cover a thing; the others cover an empty quarter
SPLIT_FILES = {"train": "ve_train.json", "val": "ve_dev.json", "test": "ve_test.json"}


class PanelView(NamedTuple):
    """A picture of a scene, whole or with a covered quarter."""

    file: str
    scene: Scene
    panel: int | None  # the covered quarter; None: none

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
            panel = draw_panel(entry.scene, rng)
            file = f"covered/{PurePath(entry.file).stem}-{panel}.jpg"
            jpeg = cover((source / entry.file).read_bytes(), panel)
            (draft / file).write_bytes(jpeg)
            views.append(PanelView(entry.file, entry.scene, None))
            views.append(PanelView(f"{name}/{file}", entry.scene, panel))
        files[SPLIT_FILES[split]] = _rows(views, rng)
    return files


def draw_panel(scene: Scene, rng: np.random.Generator) -> int:
    """The quarter to cover."""
    taken = sorted(thing.quadrant for thing in scene)
    free = [quadrant for quadrant in range(len(QUADRANTS)) if quadrant not in taken]
    quarters = free if free and rng.random() >= COVERED_THING else taken
    return int(quarters[rng.integers(len(quarters))])


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
    total = PER_PICTURE * len(views) // 2
    for kind in KINDS:
        chosen = choose_balanced(
            cells[kind], len(LABELS), total // len(KINDS), len(views) // 2, rng
        )
        for text, label, index in chosen:
            image = views[index].file.removesuffix(".jpg")
            rows.append({"image": image, "sentence": text, "label": label, "kind": kind})
    return [rows[index] for index in rng.permutation(len(rows))]


def hypotheses_of(view: PanelView) -> Iterator[tuple[str, str, str]]:
    """All hypotheses about a picture: kind, sentence, label."""
    visible = view.visible()
    yield from _existence(visible, view.panel is not None)
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


def _existence(visible: Sequence[Thing], is_covered: bool) -> Iterator[tuple[str, str, str]]:
    """ "There is a red star": what is not seen may be behind the panel, if there is one."""
    seen = {(color(thing), shape(thing)) for thing in visible}
    for c in COLORS:
        for s in SHAPES:
            article = "an" if c[0] in "aeiou" else "a"
            label = "entailment" if (c, s) in seen else "neutral" if is_covered else "contradiction"
            yield "existence", f"there is {article} {c} {s}", label


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
