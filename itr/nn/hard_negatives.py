"""In-batch hard negatives for image-text matching, drawn by similarity. B pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.draws import Draws


class HardNegatives(NamedTuple):
    """One negative for each text and each image of a batch.

    If a row has no candidate (all pairs of the batch show one image), its index is 0 and its flag
    False; the loss must ignore it.
    """

    images: Tensor  # [B] int64: negative image of text b
    texts: Tensor  # [B] int64: negative text of image b
    has_image: Tensor  # [B] bool: ``images[b]`` is valid
    has_text: Tensor  # [B] bool: ``texts[b]`` is valid

    def rows(self) -> tuple[Tensor, Tensor]:
        """Text and image indices [3B] of the pairs to match: the batch's pairs, each text with its
        negative image, each image with its negative text."""
        own = torch.arange(len(self.images), device=self.images.device)
        return torch.cat([own, own, self.texts]), torch.cat([own, self.images, own])


@torch.no_grad()
def negative_weights(logits: Tensor, forbidden: Tensor, floor: float = 0.0) -> Tensor:
    """Unnormalized probabilities [B, B] of column j as the negative of row i.

    The row-wise softmax of ``logits`` [B, B] (similarity / temperature) plus ``floor``, and 0 where
    ``forbidden`` [B, B] bool. The floor leaves a candidate in confident rows, whose other
    probabilities underflow. Source: ALBEF, section 3.2; the floor is from BLIP.
    """
    weights = logits.float().softmax(dim=1)
    return (weights + floor).masked_fill(forbidden, 0.0)


@torch.no_grad()
def draw_negatives(text_weights: Tensor, image_weights: Tensor, draws: Draws) -> HardNegatives:
    """Draw an image for each text, then a text for each image, in a single draw.

    ``text_weights`` [B texts, B images] and ``image_weights`` [B images, B texts] come from
    `negative_weights`. Does not synchronize with the device.
    """
    weights = torch.cat([text_weights, image_weights])
    images, texts = draws.categorical(weights).chunk(2)
    has_image, has_text = (weights > 0).any(dim=1).chunk(2)
    return HardNegatives(images, texts, has_image, has_text)


def matching_loss(logits: Tensor, chosen: HardNegatives) -> Tensor:
    """Mean cross-entropy of ``logits`` [3B, 2] (column 1: match) for the pairs of
    ``chosen.rows()``; invalid negatives are ignored."""
    true = torch.ones_like(chosen.has_image)
    counted = torch.cat([true, chosen.has_image, chosen.has_text])
    labels = torch.cat([true, ~true, ~true]).long()
    cost = F.cross_entropy(logits.float(), labels, reduction="none")
    return (cost * counted).sum() / counted.sum()
