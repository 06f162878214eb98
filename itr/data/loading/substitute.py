"""Replaces training images that cannot be decoded by the next readable ones. B pairs per batch."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from itr.data.records import Split


def replace_broken(
    split: Split, captions: np.ndarray, share: slice, broken: Container[int]
) -> tuple[np.ndarray, list[int]]:
    """``captions`` [B] with the pairs of ``broken`` images replaced, and the replaced images.

    Only the rows ``share`` of this rank change. A broken image becomes the next readable one that
    the batch does not contain yet: the number of pairs with equal images stays the same, and the
    other ranks, which do not know the broken images of this rank, rely on it. The result depends
    only on ``broken``, not on when an image was found to be broken: the loader assembles a batch
    again until all of its images can be decoded.
    """
    images = split.text_to_image[captions]
    own = images[share]
    replaced = [image for image in dict.fromkeys(own.tolist()) if image in broken]
    if not replaced:
        return captions, replaced
    captions, used = captions.copy(), set(images.tolist())
    for image in replaced:
        substitute = _next_image(split, image, broken, used)
        if substitute is None:  # the batch contains all readable images
            substitute = _next_image(split, image, broken)
        assert substitute is not None, "every image is broken"
        used.add(substitute)
        captions[share][own == image] = split.first_caption[substitute]
    return captions, replaced


def replace_broken_pairs(
    second: np.ndarray, split: Split, captions: np.ndarray, share: slice, broken: Container[int]
) -> tuple[np.ndarray, list[int]]:
    """`replace_broken` for captions of two images: ``second`` [C] is the other image of each.

    A caption with a broken image becomes the next one whose images can both be read and which the
    batch does not contain yet.
    """
    first = split.text_to_image
    own = captions[share].tolist()
    gone = [c for c in own if first[c] in broken or second[c] in broken]
    if not gone:
        return captions, []
    captions, used = captions.copy(), set(captions.tolist())
    total = len(second)
    for caption in dict.fromkeys(gone):
        following = [(caption + step) % total for step in range(1, total)]
        readable = [c for c in following if first[c] not in broken and second[c] not in broken]
        assert readable, "every pair has a broken image"
        substitute = next((c for c in readable if c not in used), readable[0])
        used.add(substitute)
        captions[share][captions[share] == caption] = substitute
    images = (int(image) for c in gone for image in (first[c], second[c]))
    return captions, [image for image in dict.fromkeys(images) if image in broken]


def _next_image(split: Split, image: int, *excluded: Container[int]) -> int | None:
    """The first image after ``image``, cyclically, that is in none of ``excluded``, if any."""
    following = ((image + step) % split.n_images for step in range(1, split.n_images))
    return next((n for n in following if not any(n in images for images in excluded)), None)
