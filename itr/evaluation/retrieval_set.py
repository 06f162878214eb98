"""The images and captions of an evaluation, and the subsets that a protocol ranks.

N images, C captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from itr.data.layouts.precomp_ids import ANNOTATIONS
from itr.data.records import Split
from itr.evaluation.ground_truths import GroundTruth, coco_ground_truth
from itr.evaluation.protocols import PROTOCOLS, Protocol


class Subset(NamedTuple):
    """Images and captions (each as an index) that are ranked against each other."""

    images: slice | np.ndarray
    captions: slice | np.ndarray
    text_to_image: np.ndarray  # image of each caption, counted from 0 within the subset


@dataclass(frozen=True)
class RetrievalSet:
    """The image of each caption and, if the dataset has them, its image and caption ids.

    ``annotations``: the folder of CxC's ratings within images and within captions, if any.
    """

    text_to_image: np.ndarray  # [C] int64
    n_images: int
    image_ids: np.ndarray | None = None  # [N]
    caption_ids: np.ndarray | None = None  # [C]
    annotations: Path | None = None

    @classmethod
    def from_split(cls, split: Split) -> RetrievalSet:
        """The retrieval set of a split."""
        images = np.array([record.image_id for record in split.records], dtype=np.int64)
        captions = [i for record in split.records for i in record.caption_ids]
        annotations = Path(split.source).parent / ANNOTATIONS
        return cls(
            split.text_to_image,
            split.n_images,
            images,
            np.array(captions, dtype=np.int64),
            annotations if annotations.is_dir() else None,
        )

    def incompatibility(self, protocol: Protocol) -> str | None:
        """Return why ``protocol`` cannot be used, or None if it can."""
        if protocol.images not in (None, self.n_images) or self.n_images % (protocol.fold or 1):
            return f"needs {protocol.images or f'a multiple of {protocol.fold}'} images"
        if protocol.ground_truth is not None:
            truth = self.ground_truth(protocol.ground_truth)
            return truth.incompatibility(self.image_ids, self.caption_ids)
        return None

    def ground_truth(self, name: str) -> GroundTruth:
        """The ground truth ``cxc`` or ``eccv``."""
        return coco_ground_truth(name, self.annotations)

    def subsets(self, protocol: Protocol) -> Iterator[Subset]:
        """Yield the subsets that ``protocol`` ranks: one per fold, or a single one."""
        text_to_image = np.asarray(self.text_to_image, dtype=np.int64)
        captions: slice | np.ndarray = slice(None)
        if protocol.captions is not None:
            captions = first_captions(text_to_image, protocol.captions)
        elif protocol.ground_truth is not None and self.caption_ids is not None:
            known = np.array(sorted(self.ground_truth(protocol.ground_truth).captions))
            if not (inside := np.isin(self.caption_ids, known)).all():
                captions = np.flatnonzero(inside)
        text_to_image = text_to_image[captions]
        if protocol.fold is None:
            yield Subset(slice(None), captions, text_to_image)
            return
        indices = np.arange(len(self.text_to_image))[captions]
        for start in range(0, self.n_images, protocol.fold):
            in_fold = (start <= text_to_image) & (text_to_image < start + protocol.fold)
            images = slice(start, start + protocol.fold)
            yield Subset(images, indices[in_fold], text_to_image[in_fold] - start)


def first_captions(text_to_image: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first ``count`` captions of each image, ascending.

    ``text_to_image`` [C] holds the image of each caption.
    """
    order = np.argsort(text_to_image, kind="stable")
    by_image = text_to_image[order]
    position = np.arange(len(text_to_image)) - np.searchsorted(by_image, by_image)
    return np.sort(order[position < count])


def applicable_protocols(
    protocols: Sequence[Protocol], retrieval_set: RetrievalSet
) -> tuple[list[Protocol], dict[str, str]]:
    """The protocols that can be used (``full`` if none), and why each of the others cannot."""
    skipped = {
        protocol.name: reason
        for protocol in protocols
        if (reason := retrieval_set.incompatibility(protocol)) is not None
    }
    usable = [protocol for protocol in protocols if protocol.name not in skipped]
    return usable or [PROTOCOLS["full"]], skipped
