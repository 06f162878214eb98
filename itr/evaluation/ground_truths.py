"""Ground truths of COCO's test images beyond "a caption belongs to its image".

Crisscrossed Captions (CxC, Parekh et al., EACL 2021) and ECCV Caption (Chun et al., ECCV 2022)
come with the package eccv-caption and speak of COCO's own image and caption ids. CxC's images
among images and captions among captions are read from ``cxc_i2i.json`` and ``cxc_t2t.json`` (id ->
[[id, score], ...]), where there are any.

Q queries, M candidates, P positives.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from itr.errors import DataError

IMAGE_SCORE, TEXT_SCORE = 2.5, 3.0  # from which CxC's raters call two images, two texts alike
Positives = Mapping[int, Sequence[int]]  # query id -> candidate ids


@dataclass(frozen=True)
class Truth:
    """``positives`` by direction; ``images`` and ``captions`` are the ids of the whole gallery."""

    name: str
    positives: Mapping[str, Positives]
    images: frozenset[int]
    captions: frozenset[int]

    def lacks(self, image_ids: np.ndarray | None, caption_ids: np.ndarray | None) -> str | None:
        """Why a gallery with these ids cannot be evaluated so; None: it can.

        Captions that the truth does not know are left out of the gallery, images may not be there.
        """
        if image_ids is None or caption_ids is None:
            return "needs COCO's image and caption ids, and there are none"
        images, captions = set(image_ids.tolist()), set(caption_ids.tolist())
        if unknown := len(images - self.images):
            return f"{unknown} of {len(images)} image ids are none of COCO's test images"
        for what, wanted, found in (
            ("images", self.images, images),
            ("captions", self.captions, captions),
        ):
            if missing := len(wanted - found):
                return f"{missing} of its {len(wanted)} {what} are missing"
        return None


class Asked(NamedTuple):
    """Queries that have a positive in the gallery, and their positives."""

    queries: np.ndarray  # [Q] numbers of the queries, rising
    rows: np.ndarray  # [P] places among ``queries``, rising
    columns: np.ndarray  # [P] numbers of candidates
    known: np.ndarray  # [Q] positives of each query, those outside the gallery, too


def asked(positives: Positives, queries: np.ndarray, candidates: np.ndarray) -> Asked:
    """``positives`` by ids, as numbers: ``queries`` [Q] and ``candidates`` [M] hold ids.

    Positives outside the gallery are only counted (``known``: two images of ECCV Caption have a
    match among the ten captions that no gallery of 25,000 holds); a query left without any inside
    is not asked. Raises DataError for an id that stands twice.
    """
    for ids in (queries, candidates):
        values, counts = np.unique(ids, return_counts=True)
        if len(values) < len(ids):
            raise DataError(
                f"{int((counts > 1).sum())} ids stand twice (such as {values[counts > 1][0]}); a "
                "ground truth by ids needs each once"
            )
    place = {int(identity): number for number, identity in enumerate(candidates)}
    kept: list[int] = []
    rows: list[int] = []
    columns: list[int] = []
    known: list[int] = []
    for number, identity in enumerate(queries):
        named = set(positives.get(int(identity), ()))
        found = {place[other] for other in named if other in place}
        if found:
            known.append(len(named))
            rows += [len(kept)] * len(found)
            columns += sorted(found)
            kept.append(number)
    return Asked(*(np.array(part, dtype=np.int64) for part in (kept, rows, columns, known)))


@functools.cache
def _packaged() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like another JSON reader
        from eccv_caption import Metrics

        return Metrics()


def coco_truth(name: str, annotations: Path | None = None) -> Truth:
    """The truth ``cxc`` or ``eccv``; ``annotations`` is the folder of CxC's own files, if any."""
    packaged = _packaged()
    positives = dict(packaged.cxc_gts if name == "cxc" else packaged.eccv_gts)
    if name == "cxc" and annotations is not None:
        positives |= within_modality(annotations, packaged.coco_gts["i2t"])
    images, captions = packaged.coco_gts["i2t"], packaged.coco_gts["t2i"]
    return Truth(name, positives, frozenset(images), frozenset(captions))


def within_modality(folder: Path, captions_of: Positives) -> dict[str, Positives]:
    """CxC's ``i2i`` and ``t2t`` from the files in ``folder``, those that are there.

    An image's positives are those rated at least 2.5; a caption's are the other captions of its
    image (``captions_of``) and those rated at least 3. Raises DataError for a broken file.
    """
    found: dict[str, Positives] = {}
    siblings = {
        caption: [other for other in own if other != caption]
        for own in captions_of.values()
        for caption in own
    }
    for direction, least in (("i2i", IMAGE_SCORE), ("t2t", TEXT_SCORE)):
        path = folder / f"cxc_{direction}.json"
        if path.is_file():
            rated = rated_at_least(_read(path), least, str(path))
            found[direction] = rated if direction == "i2i" else _merged(siblings, rated)
    return found


def rated_at_least(annotations: Any, least: float, where: str) -> dict[int, list[int]]:
    """The ids rated at least ``least`` in ``annotations`` (id -> [[id, score], ...])."""
    try:
        return {
            int(query): [int(other) for other, score in rated if float(score) >= least]
            for query, rated in annotations.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{where}: expected id -> [[id, score], ...] ({error})") from error


def _merged(first: Positives, second: Positives) -> dict[int, list[int]]:
    keys = {*first, *second}
    return {key: [*first.get(key, ()), *second.get(key, ())] for key in keys}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); copy it again") from error
