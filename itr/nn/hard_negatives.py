"""Hard negatives for image-text matching, drawn inside a batch by similarity. B pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from itr.draws import Draws


class HardNegatives(NamedTuple):
    """One negative for each text and for each image of a batch.

    Where a row has no candidate (its whole batch shows one image), its entry is 0 and its flag
    False: the pair is a wrong negative, and whoever scores it must not count it.
    """

    images: Tensor  # [B] int64: a wrong image for text b
    texts: Tensor  # [B] int64: a wrong text for image b
    has_image: Tensor  # [B] bool: ``images[b]`` is a negative indeed
    has_text: Tensor  # [B] bool

    def rows(self) -> tuple[Tensor, Tensor]:
        """Captions and images [3B] of the pairs to match: the batch's own; each caption with its
        wrong image; each image with its wrong caption."""
        own = torch.arange(len(self.images), device=self.images.device)
        return torch.cat([own, own, self.texts]), torch.cat([own, self.images, own])


@torch.no_grad()
def negative_weights(logits: Tensor, forbidden: Tensor, floor: float = 0.0) -> Tensor:
    """[B, B]: how likely column j is row b's negative, not normalised.

    The softmax of a row of ``logits`` [B, B] (similarity / temperature) plus ``floor``, which
    keeps confident rows from having no candidate left once their matches are taken out; zero where
    ``forbidden`` [B, B] bool. Source: ALBEF, section 3.2; the floor is BLIP's.
    """
    weights = logits.float().softmax(dim=1)
    return (weights + floor).masked_fill(forbidden, 0.0)


@torch.no_grad()
def draw_negatives(text_weights: Tensor, image_weights: Tensor, draws: Draws) -> HardNegatives:
    """One draw for all rows: first an image for each text, then a text for each image.

    ``text_weights`` [B texts, B images] and ``image_weights`` [B images, B texts] come from
    `negative_weights`. Never asks the device for a number.
    """
    weights = torch.cat([text_weights, image_weights])
    images, texts = draws.categorical(weights).chunk(2)
    has_image, has_text = (weights > 0).any(dim=1).chunk(2)
    return HardNegatives(images, texts, has_image, has_text)


def matching_loss(logits: Tensor, chosen: HardNegatives) -> Tensor:
    """Cross-entropy of ``logits`` [3B, 2] (column 1: match) for the pairs of ``chosen.rows()``.

    The mean is over the pairs that exist: where a batch holds no negative for a row (all of it
    shows one image), that row has its positive only.
    """
    true = torch.ones_like(chosen.has_image)
    counted = torch.cat([true, chosen.has_image, chosen.has_text])
    labels = torch.cat([true, ~true, ~true]).long()
    cost = F.cross_entropy(logits.float(), labels, reduction="none")
    return (cost * counted).sum() / counted.sum()
