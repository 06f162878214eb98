"""Evaluation batches of items: each text of a split once with its picture, shared among ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from itr.batch import Batch
from itr.data.images.pixels import Pixels
from itr.data.loading.prefetch import prefetch
from itr.data.loading.train_fields import second_images
from itr.data.records import Split
from itr.data.text.token_table import CaptionPadder, TokenTable
from itr.parallel import rank, world_size
from itr.view import View


def item_batches(
    split: Split,
    view: View,
    tokens: TokenTable,
    batches: list[np.ndarray],
    num_workers: int = 0,
    finish_on_device: bool = False,
    share_images: bool = False,
) -> Iterator[Batch]:
    """A batch of each of ``batches``, which hold indices of captions; every W-th on each rank.

    Pictures are processed as ``view`` requires for evaluation; a batch of pairs of pictures also
    has ``second_pixels``. With ``share_images`` a batch holds a picture of several items once, and
    ``image_of`` says which one is whose; not for pairs.
    """
    pixels = Pixels(split, view.pixels_eval, finish_on_device)
    second, padder = second_images(split), CaptionPadder(tokens, view.text_eval)

    def assemble(captions: np.ndarray) -> Batch:
        images = split.text_to_image[captions]
        if share_images and second is None:
            once, rows = np.unique(images, return_inverse=True)
            fields = pixels.fields(once) | {"image_of": torch.from_numpy(rows)}
        elif second is None:
            fields = pixels.fields(images)
        else:
            fields = pixels.pair_fields(images, second[captions])
        positions, lengths = tokens.positions(captions)
        return Batch(
            image_id=torch.from_numpy(images),
            caption_id=torch.from_numpy(captions.copy()),
            **fields,
            **padder.fields(tokens.flat[positions], lengths),
        )

    return prefetch(assemble, batches[rank() :: world_size()], num_workers)


def consecutive(count: int, batch_size: int) -> list[np.ndarray]:
    """``count`` captions in slices of ``batch_size``, so that those of a picture are together."""
    return [
        np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)
    ]
