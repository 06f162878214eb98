"""Where a model looks: a coarse map of one image for one caption. g parts a side, R regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from itr.batch import Batch
from itr.data.loading.loader import caption_batches, image_batches
from itr.data.records import Split
from itr.data.text.open import Tokenizer, build_table
from itr.models.base import RetrievalModel
from itr.view import PixelView

GRID = 8  # parts a side that are hidden in turn
OWN = "Grad-CAM on the attention of words to the image"
HIDING = "how much of the score is lost when a part of the image is hidden"


class Seen(NamedTuple):
    """``values`` [g, g] over the picture, or [R] of regions whose place is not known."""

    values: np.ndarray
    score: float  # of the pair, by the embeddings


def kind_of(model: RetrievalModel) -> str:
    """What the maps of ``model`` show."""
    return OWN if type(model).heat is not RetrievalModel.heat else HIDING


def visible_area(picture: Image, view: PixelView | None) -> Image:
    """What a model with ``view`` sees of ``picture``, over which its map lies: the middle, where
    the shorter side is made to fit; else all."""
    if view is None or view.resize != "shortest":
        return picture
    width, height = picture.size
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.crop((left, top, left + side, top + side))


def look(
    model: RetrievalModel,
    tokenizer: Tokenizer,
    split: Split,
    pairs: Sequence[tuple[int, int]],
    cache: Path,
) -> list[Seen]:
    """A map for each pair (image number, caption number) of ``split``; on the model's device."""
    captions = split.captions()
    device = next(model.parameters()).device
    found = []
    for image, caption in pairs:
        record = split.records[image]
        text = captions[caption]
        alone = dataclasses.replace(record, captions=(text,), caption_ids=(caption,))
        one = dataclasses.replace(split, records=[alone], second=None)
        table = build_table(tokenizer, [text], model.view.text_eval, cache)
        images = next(iter(image_batches(one, model.view, 1))).to(device)
        texts = next(iter(caption_batches(one, model.view, table, 1))).to(device)
        found.append(_look(model, images, texts))
    return found


def _look(model: RetrievalModel, images: Batch, texts: Batch) -> Seen:
    with torch.inference_mode():
        text = model.encode_texts(texts).pooled[0].float()
        score = float(model.encode_images(images).pooled[0].float() @ text)
    with torch.no_grad():  # the model turns gradients on where its map needs them
        own = model.heat(images, texts)
    if own is not None:
        return Seen(own[0].float().cpu().numpy(), score)
    with torch.inference_mode():
        hidden = _without_each_part(images)
        lost = score - model.encode_images(hidden).pooled.float() @ text
    values = lost.clamp_min(0).cpu().numpy()
    return Seen(values.reshape(GRID, GRID) if images.pixels is not None else values, score)


def _without_each_part(images: Batch) -> Batch:
    """[P] copies of one image, each with one part grey (a region: the others' mean)."""
    if images.pixels is not None:
        return Batch(image_id=_zeros(GRID**2), pixels=_without_squares(images.pixels))
    assert images.regions is not None
    regions = images.regions[0]
    count = len(regions)
    others = (regions.sum(dim=0) - regions) / max(1, count - 1)
    copies = regions.repeat(count, 1, 1)
    rows = torch.arange(count, device=regions.device)
    copies[rows, rows] = others

    def repeat(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.expand(count, *value.shape[1:])

    return dataclasses.replace(
        images,
        image_id=_zeros(count),
        regions=copies,
        region_mask=repeat(images.region_mask),
        guides=repeat(images.guides),
    )


def _without_squares(pixels: Tensor) -> Tensor:
    """[g * g, 3, H, W]: normalised pixels, 0 (the data's mean colour) in one square each."""
    copies = pixels.repeat(GRID**2, 1, 1, 1)
    height, width = pixels.shape[2:]
    rows = np.linspace(0, height, GRID + 1).astype(int)
    columns = np.linspace(0, width, GRID + 1).astype(int)
    for part in range(GRID**2):
        y, x = divmod(part, GRID)
        copies[part, :, rows[y] : rows[y + 1], columns[x] : columns[x + 1]] = 0
    return copies


def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)
