"""Ground truths for COCO's test images beyond "a caption matches its own image".

Crisscrossed Captions (CxC; Parekh et al., EACL 2021) and ECCV Caption (Chun et al., ECCV 2022) are
read from the package eccv-caption. Both use COCO's image and caption ids. CxC's image-to-image and
caption-to-caption ratings are read from ``cxc_i2i.json`` and ``cxc_t2t.json`` if these files exist
(id -> [[id, score], ...]).

Q queries, M candidates, P positives.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from itr.errors import DataError
from itr.files import parse_json

# Minimum mean rating at which CxC counts two images, or two captions, as a match.
IMAGE_SCORE, TEXT_SCORE = 2.5, 3.0
Positives = Mapping[int, Sequence[int]]  # query id -> candidate ids


@dataclass(frozen=True)
class GroundTruth:
    """``positives`` by direction; ``images`` and ``captions`` hold the ids of the full test set."""

    name: str
    positives: Mapping[str, Positives]
    images: frozenset[int]
    captions: frozenset[int]

    def incompatibility(
        self, image_ids: np.ndarray | None, caption_ids: np.ndarray | None
    ) -> str | None:
        """Return why a split with these ids cannot be evaluated, or None if it can.

        Captions that the ground truth does not contain are excluded from the evaluation. Images
        that it does not contain are not allowed.
        """
        if image_ids is None or caption_ids is None:
            return "needs COCO's image and caption ids; the data has no ids"
        images, captions = set(image_ids.tolist()), set(caption_ids.tolist())
        if unknown := len(images - self.images):
            return f"{unknown} of {len(images)} image ids are not COCO test images"
        for name, expected, actual in (
            ("images", self.images, images),
            ("captions", self.captions, captions),
        ):
            if missing := len(expected - actual):
                return f"{missing} of its {len(expected)} {name} are missing"
        return None


class QueryPositives(NamedTuple):
    """Queries that have at least one positive among the candidates, and their positives."""

    queries: np.ndarray  # [Q] indices of the queries, ascending
    rows: np.ndarray  # [P] positions in ``queries``, ascending
    columns: np.ndarray  # [P] candidate indices
    n_positives: np.ndarray  # [Q] positives per query, including those outside the candidates


def index_positives(
    positives: Positives, queries: np.ndarray, candidates: np.ndarray
) -> QueryPositives:
    """Convert ``positives`` from ids to indices; ``queries`` [Q] and ``candidates`` [M] hold ids.

    Positives that are not candidates only count towards ``n_positives``: two images of ECCV
    Caption have a positive among the ten captions that the 25,000 candidates exclude. A query
    whose positives are all missing is dropped. Raises DataError for duplicate ids.
    """
    for ids in (queries, candidates):
        values, counts = np.unique(ids, return_counts=True)
        if len(values) < len(ids):
            raise DataError(
                f"{int((counts > 1).sum())} duplicate ids (e.g. {values[counts > 1][0]}); the ids "
                "must be unique to evaluate with CxC or ECCV Caption"
            )
    index_of = {int(identity): index for index, identity in enumerate(candidates)}
    used: list[int] = []
    rows: list[int] = []
    columns: list[int] = []
    n_positives: list[int] = []
    for index, identity in enumerate(queries):
        positive_ids = set(positives.get(int(identity), ()))
        matches = {index_of[other] for other in positive_ids if other in index_of}
        if matches:
            n_positives.append(len(positive_ids))
            rows += [len(used)] * len(matches)
            columns += sorted(matches)
            used.append(index)
    arrays = (np.array(values, dtype=np.int64) for values in (used, rows, columns, n_positives))
    return QueryPositives(*arrays)


@functools.cache
def _packaged() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends a faster JSON package
        from eccv_caption import Metrics

        return Metrics()


def coco_ground_truth(name: str, annotations: Path | None = None) -> GroundTruth:
    """The ground truth ``cxc`` or ``eccv``; ``annotations``: folder of CxC's files, if any."""
    packaged = _packaged()
    positives = dict(packaged.cxc_gts if name == "cxc" else packaged.eccv_gts)
    if name == "cxc" and annotations is not None:
        positives |= within_modality(annotations, packaged.coco_gts["i2t"])
    images, captions = packaged.coco_gts["i2t"], packaged.coco_gts["t2i"]
    return GroundTruth(name, positives, frozenset(images), frozenset(captions))


def within_modality(folder: Path, captions_of: Positives) -> dict[str, Positives]:
    """CxC's ``i2i`` and ``t2t`` positives, from those of its files that ``folder`` contains.

    The positives of an image are the images rated at least 2.5. The positives of a caption are the
    other captions of its image (``captions_of``) and the captions rated at least 3. Raises
    DataError for a malformed file.
    """
    positives: dict[str, Positives] = {}
    siblings = {
        caption: [other for other in captions if other != caption]
        for captions in captions_of.values()
        for caption in captions
    }
    for direction, minimum in (("i2i", IMAGE_SCORE), ("t2t", TEXT_SCORE)):
        path = folder / f"cxc_{direction}.json"
        if path.is_file():
            rated = rated_at_least(_read(path), minimum, str(path))
            positives[direction] = rated if direction == "i2i" else _merged(siblings, rated)
    return positives


def rated_at_least(annotations: Any, minimum: float, source: str) -> dict[int, list[int]]:
    """The ids rated at least ``minimum`` in ``annotations`` (id -> [[id, score], ...]).

    Raises DataError, naming ``source``, if ``annotations`` has another structure.
    """
    try:
        return {
            int(query): [int(other) for other, score in rated if float(score) >= minimum]
            for query, rated in annotations.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: expected id -> [[id, score], ...] ({error}); download the file again"
        ) from error


def _merged(first: Positives, second: Positives) -> dict[int, list[int]]:
    keys = {*first, *second}
    return {key: [*first.get(key, ()), *second.get(key, ())] for key in keys}


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); download the file again") from error
