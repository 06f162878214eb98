"""Computes saliency maps of an image for a caption. g: cells per side, R: regions."""

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
from itr.data.loading.eval_batches import caption_batches, image_batches
from itr.data.records import Split
from itr.data.text.token_cache import tokenize_cached
from itr.data.text.tokenizer import Tokenizer
from itr.models.base import RetrievalModel
from itr.view import PixelView

GRID = 8  # cells per side that are occluded in turn
GRAD_CAM = "Grad-CAM on the attention of words to the image"
OCCLUSION = "how much the score drops when a part of the image is occluded"


class SaliencyMap(NamedTuple):
    """``values`` [g, g] over the image, or [R] for regions without positions."""

    values: np.ndarray
    score: float  # of the pair, from the embeddings


def describe_maps(model: RetrievalModel) -> str:
    """What the maps of ``model`` show."""
    return GRAD_CAM if type(model).heat is not RetrievalModel.heat else OCCLUSION


def visible_area(image: Image, view: PixelView | None) -> Image:
    """The part of an image that a model with ``view`` sees, and that its map covers.

    The center square if the shorter side is resized to fit, otherwise the whole image.
    """
    if view is None or view.resize != "shortest":
        return image
    width, height = image.size
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def saliency_maps(
    model: RetrievalModel,
    tokenizer: Tokenizer,
    split: Split,
    pairs: Sequence[tuple[int, int]],
    cache: Path,
) -> list[SaliencyMap]:
    """A map for each pair (image index, caption index) of ``split``."""
    captions = split.captions()
    device = next(model.parameters()).device
    maps = []
    for image, caption in pairs:
        record = split.records[image]
        text = captions[caption]
        single = dataclasses.replace(record, captions=(text,), caption_ids=(caption,))
        one = dataclasses.replace(split, records=[single], second=None)
        table = tokenize_cached(tokenizer, [text], model.view.text_eval, cache)
        images = next(iter(image_batches(one, model.view, 1))).to(device)
        texts = next(iter(caption_batches(one, model.view, table, 1))).to(device)
        maps.append(_saliency_map(model, images, texts))
    return maps


def _saliency_map(model: RetrievalModel, images: Batch, texts: Batch) -> SaliencyMap:
    with torch.inference_mode():
        text = model.encode_texts(texts).pooled[0].float()
        score = float(model.encode_images(images).pooled[0].float() @ text)
    with torch.no_grad():  # a model enables gradients itself if its map needs them
        heat = model.heat(images, texts)
    if heat is not None:
        return SaliencyMap(heat[0].float().cpu().numpy(), score)
    with torch.inference_mode():
        occluded = _occlude_each_part(images)
        lost = score - model.encode_images(occluded).pooled.float() @ text
    values = lost.clamp_min(0).cpu().numpy()
    return SaliencyMap(values.reshape(GRID, GRID) if images.pixels is not None else values, score)


def _occlude_each_part(images: Batch) -> Batch:
    """Copies of one image, each with one cell gray (or one region replaced by the others' mean)."""
    if images.pixels is not None:
        return Batch(image_id=_zeros(GRID**2), pixels=_occlude_each_cell(images.pixels))
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


def _occlude_each_cell(pixels: Tensor) -> Tensor:
    """Normalized pixels [g * g, 3, H, W], each copy with one cell set to 0, the mean color."""
    copies = pixels.repeat(GRID**2, 1, 1, 1)
    height, width = pixels.shape[2:]
    rows = np.linspace(0, height, GRID + 1).astype(int)
    columns = np.linspace(0, width, GRID + 1).astype(int)
    for cell in range(GRID**2):
        y, x = divmod(cell, GRID)
        copies[cell, :, rows[y] : rows[y + 1], columns[x] : columns[x + 1]] = 0
    return copies


def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)
