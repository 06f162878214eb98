"""The ALBEF model, in the order of the paper.

B pairs, N image tokens, L words, E joint width, Q queue size, P pairs of an image and a caption.
v, t: image and caption embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import ScoreLoss
from itr.models.albef.config import ALBEFConfig
from itr.models.albef.encoders import ALBEFEncoders
from itr.models.albef.entailment import ALBEFEntailment
from itr.models.albef.grounding_maps import match_maps
from itr.models.albef.image_pairs import ALBEFPairs
from itr.models.albef.question_answering import ALBEFQuestionAnswering
from itr.models.albef.text_assignment import ALBEFAssignment
from itr.models.albef.unimodal import ALBEFFeatures, image_features, text_features
from itr.models.albef.word_masking import masked_words
from itr.models.base import Encoded, Model, SlotScores, Terms
from itr.models.momentum_contrast import TEMPERATURES, MomentumContrast, MomentumFeatures
from itr.nn.bert.fusion import KeysValues, MLMHead
from itr.nn.bert.halves import load_mlm_head
from itr.nn.chunked import in_chunks
from itr.nn.hard_negatives import (
    HardNegatives,
    matching_loss,
)
from itr.nn.momentum import MomentumTwin
from itr.nn.queue import FeatureQueue
from itr.view import Facts

OTHER_TASKS = (ALBEFQuestionAnswering, ALBEFEntailment, ALBEFPairs, ALBEFAssignment)
NEEDS_ITC = {"vision_proj", "text_proj", "slots.itc"}


class ALBEF(ALBEFEncoders, MomentumContrast):
    """ALBEF for pre-training, image-text retrieval and weakly supervised grounding.

    Slot ``itc`` scores each image against the captions of the batch and the queue, and each caption
    against the images.
    """

    slot_names = ("itc",)
    tasks = ("retrieval", "pretrain", "grounding")
    shares_batch_loss = False
    term_names = ("itc", "itm", "mlm")
    starts_from = ("retrieval", "pretrain", "grounding")
    symmetric_rerank = True
    rerank_block = 16
    twin: MomentumTwin  # always there

    def __init__(
        self, config: ALBEFConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        if slots and not any(map(self.uses_term, self._trained_terms())):
            raise ConfigError(
                f"loss.weights: itc and itm are 0 and task={config.task} has no term mlm, so "
                "nothing would be trained; pass loss.weights.itc=1"
            )
        whole = self.build_encoders()
        config, text = self.config, self.config.text
        self.vision_proj = nn.Linear(config.image.width, config.embed_size)
        self.text_proj = nn.Linear(text.width, config.embed_size)
        self.itm_head = nn.Linear(text.width, 2)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.image_queue = FeatureQueue(config.embed_size, config.queue_size)
        self.text_queue = FeatureQueue(
            config.embed_size, config.queue_size, with_ids=not self.pretrains
        )
        if self.pretrains:
            self.words = MLMHead(
                text.width, self.facts.vocabulary, text.layer_norm_eps, text.init_std
            )
            if whole is not None:
                load_mlm_head(whole, self.words)
        self.build_twin(*self._copied())

    @classmethod
    def class_for(cls, config: Any) -> type[Model]:
        """The class that ``config.task`` trains."""
        return next((other for other in OTHER_TASKS if config.task in other.tasks), cls)

    @property
    def pretrains(self) -> bool:
        """Whether this is pre-training."""
        return self.config.task == "pretrain"

    def _trained_terms(self) -> tuple[str, ...]:
        return self.term_names if self.pretrains else ("itc", "itm")

    def _copied(self) -> list[str]:
        names = ["vision", "vision_proj", "text", "text_proj"]
        if self.pretrains or self.config.momentum_fusion:
            names.append("fusion")
        return [*names, "words"] if self.pretrains else names

    @classmethod
    def slot_scores(cls, config: ALBEFConfig, slot: str) -> SlotScores:
        """Cosines at the model's temperature, with soft targets if it distills."""
        return SlotScores(soft="model.distill" if config.distill else None, scale=True)

    def encode_images(self, batch: Batch) -> Encoded:
        """Unit embeddings [B, E], and all image tokens for re-ranking."""
        assert batch.pixels is not None
        return Encoded(*image_features(self, batch.pixels))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Unit embeddings [B, E], and all word states for re-ranking."""
        tokens, mask = self.words_of(batch)
        return Encoded(*text_features(self, tokens, mask), mask)

    # The training step

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """Modules of terms of weight 0, and the temperature if no loss reads it."""
        asleep = set() if self.uses_term("itm") else {"itm_head"}
        if not (self.uses_term("itc") and self.reads_model_scale(["itc"])):
            asleep.add("temperature")
        if self.pretrains and not self.uses_term("mlm"):
            asleep.add("words")
        if not self.uses_term("itm") and not (self.pretrains and self.uses_term("mlm")):
            asleep.add("fusion")
        return frozenset(asleep if self.uses_term("itc") else asleep | NEEDS_ITC)

    def before_step(self, clock: Clock) -> None:
        """Clamp the temperature to its range and update the momentum encoders."""
        if self.config.clamp_temperature:
            with torch.no_grad():
                self.temperature.clamp_(*TEMPERATURES)
        super().before_step(clock)

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Terms ``itc``, ``itm`` and, in pre-training, ``mlm``."""
        states = self.states(batch) | self.frozen_states(batch)
        return self.terms_of(states, batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings and tokens of images and captions."""
        assert batch.pixels is not None
        images, texts = (
            image_features(self, batch.pixels),
            text_features(self, *self.words_of(batch)),
        )
        return {
            "image": images.unit,
            "image_tokens": images.tokens,
            "text": texts.unit,
            "text_tokens": texts.tokens,
        }

    @torch.no_grad()
    def frozen_states(self, batch: Batch) -> dict[str, Tensor]:
        """The batch's features from the momentum encoders."""
        assert batch.pixels is not None
        images = image_features(self.twin, batch.pixels)
        texts = text_features(self.twin, *self.words_of(batch))
        return {"image_key": images.unit, "text_key": texts.unit, "key_tokens": images.tokens}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The terms from the output of `states` and `frozen_states`."""
        assert batch.image_id is not None
        tokens, mask = self.words_of(batch)
        images = ALBEFFeatures(states["image"], states["image_tokens"])
        texts = ALBEFFeatures(states["text"], states["text_tokens"])
        keys = MomentumFeatures(states["image_key"], states["text_key"], states["key_tokens"])
        self.pending = (keys, batch.image_id)
        alpha, terms = self.alpha(clock), Terms({})
        scores = self.contrast(images.unit, texts.unit, keys, batch.image_id, alpha)
        terms.report["temperature"] = self.temperature.detach()
        if self.uses_term("itc"):
            slot = self.slots["itc"]
            assert isinstance(slot, ScoreLoss)
            terms.losses["itc"] = slot(scores, clock, draws)
            terms.report.update({f"itc_{key}": value for key, value in slot.report.items()})
        use_mlm = self.pretrains and self.uses_term("mlm")
        if not (use_mlm or self.uses_term("itm")):
            return terms
        fused = self.fusion.keys_values(images.tokens)
        if self.uses_term("itm"):
            chosen = self.negatives(scores, draws)
            logits = self.matching_logits(texts.tokens, mask, fused, chosen)
            terms.losses["itm"] = matching_loss(logits, chosen)
        if use_mlm:
            terms.losses["mlm"] = masked_words(self, tokens, mask, fused, keys, alpha, draws)
        return terms

    # 3.2 Image-text matching with hard negatives

    def matching_logits(
        self, states: Tensor, mask: Tensor, images: list[KeysValues], chosen: HardNegatives
    ) -> Tensor:
        """Logits [3B, 2] in one pass: pairs; captions with negative images; images with negative
        captions."""

        def logits(text_of: Tensor, image_of: Tensor) -> Tensor:
            # Not states[text_of]: its backward adds in no fixed order on several CPU threads.
            return self._match(states.index_select(0, text_of), mask[text_of], images, image_of)

        rows = None if self.chunk_pairs is None else 3 * self.chunk_pairs
        return in_chunks(logits, rows, *chosen.rows())

    def _match(
        self, states: Tensor, mask: Tensor, images: list[KeysValues], image_of: Tensor
    ) -> Tensor:
        fused = self.fusion(states, mask, images, image_of, first_only=True)
        return self.itm_head(fused[:, 0])

    def rerank(
        self, images: Encoded, texts: Encoded, pairs: Tensor, direction: str, block: int = 1
    ) -> Tensor:
        """Match logits [P] of ``pairs`` [P, 2] (image row, text row), the same both ways.

        Each ``block`` of pairs shares its image's keys and values without copying them.
        """
        assert images.tokens is not None and texts.tokens is not None and texts.mask is not None
        text_of, block_of = pairs[:, 1], pairs[::block, 0]
        fused = self.fusion.keys_values(images.tokens)
        return self._match(texts.tokens[text_of], texts.mask[text_of], fused, block_of)[:, 1]

    # 6 Visualization and weakly supervised grounding

    def heat(
        self, images: Batch, texts: Batch, mode: str = "itm", block: int | None = None
    ) -> Tensor:
        """Heat maps [P, g, g] of pairs, by default of the third fusion layer (`match_maps`)."""
        return self.grounding_maps(replace(texts, pixels=images.pixels), mode, block)

    def grounding_maps(self, batch: Batch, mode: str = "itm", block: int | None = None) -> Tensor:
        """Maps [B, g, g] of what the texts of ``batch`` refer to; see `match_maps`."""
        return match_maps(self, batch, mode, block)
