"""Where ALBEF looks when it matches an image with a text: Grad-CAM, for heat maps and grounding.

Source: section 6 of the paper and the authors' code for RefCOCO+.

P pairs, U images, N image tokens, L words, H heads, g patches of a side.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from itr.batch import Batch
from itr.errors import ConfigError
from itr.nn.gradcam import AttentionTrace, caption_maps, class_maps, trace_attention

if TYPE_CHECKING:
    from itr.models.albef.model import ALBEF

HEAT_LAYER = 2  # the paper looks at the third fusion layer
MODES = ("itm", "itc")


def match_maps(model: ALBEF, batch: Batch, mode: str = "itm", block: int | None = None) -> Tensor:
    """Maps [P, g, g] of the texts of ``batch`` on its images.

    ``itm``: from the cross-attention of BERT layer ``block`` (default: the third fusion layer) and
    the match logit; ``itc``: from the self-attention of block ``block`` of the vision transformer
    (default: that of the same number) and the cosine. With ``itm``, an image of several texts
    (``batch.image_of``) is encoded once. Raises ConfigError for a mode or block that does not
    exist.
    """
    assert batch.token_mask is not None and batch.pixels is not None
    if mode not in MODES:
        raise ConfigError(f"mode={mode}: expected one of {', '.join(MODES)}")
    if mode == "itm":
        return caption_maps(word_trace(model, batch, batch, block).evidence, batch.token_mask)
    pixels = batch.pixels
    if batch.image_of is not None:  # each text has a gradient of its own
        pixels = pixels.index_select(0, batch.image_of)
    return class_maps(patch_trace(model, replace(batch, pixels=pixels), block).evidence)


def word_trace(
    model: ALBEF, images: Batch, texts: Batch, block: int | None = None
) -> AttentionTrace:
    """Cross-attention [P, H, L, N] of BERT layer ``block`` and the gradient of the match logits."""
    start = model.config.text.fusion_layer
    depth = start + len(model.fusion.layers)
    block = min(start + HEAT_LAYER, depth - 1) if block is None else block
    if not start <= block < depth:
        raise ConfigError(
            f"block={block}: the fusion layers of this model are {start} to {depth - 1}"
        )
    with torch.no_grad():
        patches, words = model.encode_images(images), model.encode_texts(texts)
    assert patches.tokens is not None and words.tokens is not None and words.mask is not None
    states, mask = words.tokens, words.mask
    fused = model.fusion.keys_values(patches.tokens)
    attention = model.fusion.get_submodule(f"layers.{block - start}.image")

    def match() -> Tensor:  # computes all words, so that the last layer attends with each
        fusion = model.fusion(states, mask, fused, images.image_of)
        return model.itm_head(fusion[:, 0])[:, 1].sum()

    return trace_attention(attention, match)


def patch_trace(model: ALBEF, batch: Batch, block: int | None = None) -> AttentionTrace:
    """Self-attention [P, H, N, N] of a block of the vision transformer and the gradient of the
    cosines of each image with its text, divided by the temperature."""
    depth, start = len(model.vision.blocks), model.config.text.fusion_layer
    block = min(start + HEAT_LAYER, depth - 1) if block is None else block
    if not 0 <= block < depth:
        raise ConfigError(
            f"block={block}: the blocks of this vision transformer are 0 to {depth - 1}"
        )
    with torch.no_grad():
        texts = model.encode_texts(batch).pooled

    def cosines() -> Tensor:
        return (model.encode_images(batch).pooled * texts).sum() / model.temperature

    return trace_attention(model.vision.get_submodule(f"blocks.{block}.attn"), cosines)
