"""Evaluation batches: each image and each caption of a split once, shared among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from itr.batch import Batch
from itr.data.images.pixels import Pixels
from itr.data.images.regions import Regions
from itr.data.loading.loader import require_positive
from itr.data.loading.prefetch import prefetch
from itr.data.records import Split
from itr.data.text.token_table import CaptionPadder, TokenTable
from itr.parallel import rank, world_size
from itr.view import View


def image_batches(
    split: Split,
    view: View,
    batch_size: int,
    num_workers: int = 0,
    finish_on_device: bool = False,
) -> Iterator[Batch]:
    """Batches of images in record order, processed as ``view`` requires for evaluation.

    Each image comes once: the batches are distributed over the ranks.
    """
    fields: Callable[[np.ndarray], dict[str, Any]]
    if view.kind == "pixels":
        fields = Pixels(split, view.pixels_eval, finish_on_device).fields
    else:
        regions = Regions(split)

        def fields(images: np.ndarray) -> dict[str, Any]:
            return regions.fields(images, None, view.regions_eval.min_pad)

    def assemble(images: np.ndarray) -> Batch:
        return Batch(image_id=torch.from_numpy(images.copy()), **fields(images))

    return prefetch(assemble, _own_batches(np.arange(split.n_images), batch_size), num_workers)


def caption_batches(
    split: Split, view: View, tokens: TokenTable, batch_size: int
) -> Iterator[Batch]:
    """Batches of captions, identified by ``caption_id``, distributed over the ranks.

    The longest captions come first, which keeps padding small; where padding changes the model's
    results, captions come in record order.
    """
    order = np.arange(split.n_captions)
    if not view.padding_is_arithmetic:
        order = np.argsort(-tokens.lengths, kind="stable")
    padder = CaptionPadder(tokens, view.text_eval)

    def assemble(captions: np.ndarray) -> Batch:
        positions, lengths = tokens.positions(captions)
        return Batch(
            image_id=torch.from_numpy(split.text_to_image[captions]),
            caption_id=torch.from_numpy(captions.copy()),
            **padder.fields(tokens.flat[positions], lengths),
        )

    return prefetch(assemble, _own_batches(order, batch_size), num_workers=0)


def _own_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The batches of this rank: every W-th slice of ``order``."""
    require_positive(batch_size)
    starts = range(0, len(order), batch_size)
    return [order[start : start + batch_size] for start in starts][rank() :: world_size()]
