"""ALBEF's text assignment, the pre-training of NLVR2: which of two images does a caption describe?

Source: section 5 of the paper (NLVR2) and the authors' code.

B pairs, N image tokens, L words, E joint width, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.models.albef.config import ALBEFConfig
from itr.models.albef.encoders import ALBEFEncoders, image_tokens, with_pairs
from itr.models.base import Terms
from itr.nn.bert.fusion import pairs_of
from itr.nn.bert.halves import text_states
from itr.nn.chunked import in_chunks
from itr.nn.hard_negatives import negative_weights
from itr.view import Facts

FEWEST = 3  # pairs of a batch: a caption may be shown two images that are not its own
NEITHER = 1 / 3  # share of the captions that are


class Assigned(NamedTuple):
    """The two images that each caption is shown."""

    first: Tensor  # [B] int64
    second: Tensor  # [B] int64
    labels: Tensor  # [B] int64: 0 the first is its own, 1 the second, 2 neither
    valid: Tensor  # [B] bool: there were enough candidates


class ALBEFAssignment(ALBEFEncoders):
    """ALBEF with paired fusion layers and a head that says which image belongs to the caption.

    Other images are drawn by similarity. The projections that measure it are not trained. Its only
    term is ``label``.
    """

    tasks = ("assignment",)
    term_names = ("label",)
    shares_batch_loss = False
    starts_from = ("assignment", "pretrain", "retrieval", "grounding")

    def __init__(
        self, config: ALBEFConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        self.build_encoders(paired=True)
        config = self.config
        self.vision_proj = nn.Linear(config.image.width, config.embed_size)
        self.text_proj = nn.Linear(config.text.width, config.embed_size)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.assignment_head = nn.Linear(config.text.width, FEWEST)

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """What only measures similarity, or belongs to the pre-trained model."""
        return frozenset({"vision_proj", "text_proj", "temperature"})

    def check_batch(self, share: int) -> None:
        """Raises ConfigError for fewer than three pairs per device."""
        if share < FEWEST:
            raise ConfigError(
                f"batch_size: task=assignment has {share} pairs on each device; expected at least "
                f"{FEWEST}, because a caption is also shown two images of others; raise batch_size"
            )

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Term ``label``."""
        return self.terms_of(self.states(batch), batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Image tokens and word states."""
        assert batch.pixels is not None
        words = text_states(self.text, *self.words_of(batch))
        return {"image": image_tokens(self, batch.pixels), "text": words}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The cross-entropy of the three answers, and their accuracy as a report."""
        _, mask = self.words_of(batch)
        assert batch.image_id is not None
        shown = self.assign(states["image"], batch.image_id, draws)
        logits = self.assignment_logits(states, mask, shown)
        cost = F.cross_entropy(logits.float(), shown.labels, reduction="none")
        count = shown.valid.sum().clamp(min=1)
        right = (logits.detach().argmax(dim=1) == shown.labels) & shown.valid
        return Terms(
            {"label": (cost * shown.valid).sum() / count}, {"accuracy": 100.0 * right.sum() / count}
        )

    def assignment_logits(
        self, states: Mapping[str, Tensor], mask: Tensor, shown: Assigned
    ) -> Tensor:
        """Logits [B, 3], ``chunk_pairs`` captions at a time. Each image is projected once."""
        images = self.fusion.keys_values(states["image"])

        def logits(words: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
            fused = self.fusion(words, mask, pairs_of(images, first, second), first_only=True)
            return self.assignment_head(fused[:, 0])

        return in_chunks(logits, self.chunk_pairs, states["text"], mask, shown.first, shown.second)

    @torch.no_grad()
    def image_weights(self, images: Tensor, ids: Tensor) -> Tensor:
        """Unnormalized probabilities [B, B] of image j as another image for caption i.

        From the similarity of ``images`` [B, N, Dv]; 0 where ``ids`` [B] are equal.
        """
        with torch.autocast(images.device.type, enabled=False):
            first = images.detach()[:, 0].float()  # a view of it would still require gradients
            features = F.normalize(self.vision_proj(first), dim=1)
            logits = features @ features.t() / self.config.temperature
        same = ids[:, None] == ids[None, :]
        return negative_weights(logits, same, self.config.negative_floor)

    @torch.no_grad()
    def assign(self, images: Tensor, ids: Tensor, draws: Draws) -> Assigned:
        """Draw what each caption is shown: two others for a third of them, else its own and one
        other, in either order.

        Draws in this order: the first other image, another one, whether it is two others, whether
        its own comes first.
        """
        weights = self.image_weights(images, ids)
        own = torch.arange(len(ids), device=ids.device)
        other = draws.categorical(weights)
        left = weights.scatter(1, other[:, None], 0.0)
        another = draws.categorical(left)
        neither = draws.bernoulli(NEITHER, own.shape, own.device)
        own_first = draws.bernoulli(0.5, own.shape, own.device)
        return Assigned(
            torch.where(neither, other, torch.where(own_first, own, other)),
            torch.where(neither, another, torch.where(own_first, other, own)),
            torch.where(neither, 2, torch.where(own_first, 0, 1)),
            (weights > 0).any(dim=1) & (~neither | (left > 0).any(dim=1)),
        )

    def adopt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a model that looks at one image, each fusion layer becomes a pair."""
        return with_pairs(state, len(self.fusion.layers))
