"""Which images are shown where a training picture is broken. B pairs of the whole batch."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from itr.data.records import Split


def without_broken(
    split: Split, drawn: np.ndarray, mine: slice, broken: Container[int]
) -> tuple[np.ndarray, list[int]]:
    """The captions ``drawn`` [B] with the next sound images in the place of the ``broken`` ones in
    the rows ``mine`` of this rank, and which those were.

    An image that the batch holds already is passed over, so that as many repeat as were drawn: the
    other ranks, who do not know what is broken here, count on it. What comes in does not depend on
    when a picture was found to be broken: the batch is put together until all of it is sound.
    """
    owners = split.text_to_image[drawn]
    own = owners[mine]
    gone = [image for image in dict.fromkeys(own.tolist()) if image in broken]
    if not gone:
        return drawn, gone
    captions, taken = drawn.copy(), set(owners.tolist())
    for image in gone:
        other = _next(split, image, broken, taken)
        if other is None:  # the batch is all there is
            other = _next(split, image, broken)
        assert other is not None, "every picture is broken"
        taken.add(other)
        captions[mine][own == image] = split.first_caption[other]
    return captions, gone


def _next(split: Split, image: int, *passed: Container[int]) -> int | None:
    """The first image after ``image`` that is in none of ``passed``; None: there is none."""
    after = ((image + step) % split.n_images for step in range(1, split.n_images))
    return next((n for n in after if not any(n in known for known in passed)), None)
