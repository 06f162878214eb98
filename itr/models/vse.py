"""VSE-infinity: Learning the Best Pooling Strategy for Visual Semantic Embedding (CVPR 2021).

Chen, Hu, Wu, Jiang, Wang; the variant with region features and BERT. Two independent encoders, each
with the generalized pooling operator (GPO), are trained with a triplet loss. HREM and USER build on
it.

B pairs, R regions, L words, D joint width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import ScoreLoss, Scores, pair_scores
from itr.models.base import (
    Encoded,
    ParameterGroup,
    RetrievalModel,
    SlotScores,
    Terms,
    parameter_names,
)
from itr.nn.bert.bert import TextConfig, bert_states, build_bert, with_loaded_sizes
from itr.nn.gpo import GPO
from itr.nn.lora import LoRAConfig
from itr.nn.pooling import FirstTokenPool, MeanPool, l2_normalize
from itr.nn.region_layers import RegionMLP
from itr.options import configured, option
from itr.parallel import all_gather, world_size
from itr.view import CaptionAugment, Facts, RegionView, TextView, View

IMAGE_POOLS: dict[str, type[nn.Module]] = {"gpo": GPO, "mean": MeanPool}
TEXT_POOLS = {**IMAGE_POOLS, "cls": FirstTokenPool}


@dataclass
@configured("model/vse.yaml", "model")
class VSEConfig:
    """Options of `VSE`; the defaults are the authors' (region features, BERT)."""

    pretrained: bool = option()
    init: str | None = option()
    lora: LoRAConfig = option()
    embed_size: int = option(at_least=1)
    normalize_images: bool = option()
    normalize_texts: bool = option()
    region_drop: float = option(at_least=0, below=1)
    caption_augment: bool = option()
    bert_lr_factor: float = option()
    image_pool: str = option(choices=("gpo", "mean"))
    text_pool: str = option(choices=("gpo", "mean", "cls"))
    text: TextConfig = option()


class VSEImageEncoder(nn.Module):
    """Encodes region features as one embedding.

    An optional ``enhance`` module runs first: regions [B, R, width] and guides [B, G] or None ->
    [B, R, width].
    """

    def __init__(self, config: VSEConfig, region_width: int, enhance: nn.Module | None = None):
        super().__init__()
        self.enhance = enhance
        self.project = nn.Linear(region_width, config.embed_size)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.mlp = RegionMLP(region_width, config.embed_size)
        self.pool = IMAGE_POOLS[config.image_pool]()
        self.normalize = config.normalize_images

    def forward(
        self, regions: Tensor, mask: Tensor, shortest: int = 0, guides: Tensor | None = None
    ) -> Tensor:
        """[B, R, width], [B, R] bool -> [B, D] float32; ``shortest`` as for `GPO`."""
        if self.enhance is not None:
            regions = self.enhance(regions, guides)
        pooled = self.pool(self.project(regions) + self.mlp(regions), mask, shortest)
        return l2_normalize(pooled) if self.normalize else pooled


class VSETextEncoder(nn.Module):
    """Encodes token ids as one embedding. The pooling includes [CLS] and [SEP]."""

    def __init__(self, config: VSEConfig, vocabulary: int):
        super().__init__()
        self.bert = build_bert(config.text, config.pretrained, vocabulary)
        self.project = nn.Linear(self.bert.config.hidden_size, config.embed_size)
        self.pool = TEXT_POOLS[config.text_pool]()
        self.normalize = config.normalize_texts

    def forward(self, tokens: Tensor, mask: Tensor, shortest: int = 0) -> Tensor:
        """[B, L], [B, L] bool -> [B, D] float32; ``shortest`` as for `GPO`."""
        pooled = self.pool(self.project(bert_states(self.bert, tokens)), mask, shortest)
        return l2_normalize(pooled) if self.normalize else pooled


class VSE(RetrievalModel):
    """Slot ``batch``: images against captions."""

    Config = VSEConfig
    slot_names: ClassVar[tuple[str, ...]] = ("batch",)
    term_names: ClassVar[tuple[str, ...]] = ("batch",)
    config: VSEConfig

    def __init__(
        self, config: VSEConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        self._check()
        assert facts.region_width is not None
        self.images = VSEImageEncoder(config, facts.region_width, self.enhancement())
        self.texts = VSETextEncoder(config, facts.vocabulary)
        if config.pretrained:
            self.config, self.facts = with_loaded_sizes(config, facts, self.texts.bert)
            self.view = self.view_for(self.config)

    def _check(self) -> None:
        if self.facts.region_width is None:
            raise ConfigError(
                f"{type(self).__name__} needs region features, but this dataset has none; choose a "
                "dataset with region arrays, or a model that reads pixels"
            )

    def enhancement(self) -> nn.Module | None:
        """The module that enhances regions before encoding; None here."""
        return None

    @classmethod
    def view_for(cls, config: VSEConfig) -> View:
        """Regions (randomly dropped in training) and captions; an epoch visits every caption."""
        plain = TextView(max_length=config.text.max_positions)
        augment = CaptionAugment() if config.caption_augment else None
        return View(
            kind="regions",
            tokenizer=config.text.tokenizer or config.text.name,
            text=dataclasses.replace(plain, augment=augment),
            text_eval=plain,
            regions=RegionView(drop=config.region_drop),
            vocabulary_size=config.text.vocabulary_size,
        )

    @classmethod
    def slot_scores(cls, config: VSEConfig, slot: str) -> SlotScores:
        """Cosines if both modalities are normalized."""
        return SlotScores(
            cosine=config.normalize_images and config.normalize_texts,
            remedy="model.normalize_images=true model.normalize_texts=true",
        )

    def encode_images(self, batch: Batch) -> Encoded:
        """Embeddings [B, D] of the regions."""
        assert batch.regions is not None and batch.region_mask is not None
        return Encoded(
            self.images(batch.regions, batch.region_mask, batch.min_region_length, batch.guides)
        )

    def encode_texts(self, batch: Batch) -> Encoded:
        """Embeddings [B, D] of the captions."""
        assert batch.tokens is not None and batch.token_mask is not None
        return Encoded(self.texts(batch.tokens, batch.token_mask, batch.min_token_length))

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Term ``batch``."""
        images, texts = self.encode_images(batch).pooled, self.encode_texts(batch).pooled
        return self.batch_terms(images, texts, batch, clock, draws)

    def batch_terms(
        self, images: Tensor, texts: Tensor, batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """Term ``batch`` of embeddings [B, D], over the pairs of all ranks."""
        terms = Terms({})
        if self.uses_term("batch"):
            assert batch.image_id is not None
            images, texts = all_gather(images, "full"), all_gather(texts, "full")
            pairs = batch.positive_pairs if world_size() == 1 else batch.shared_pairs
            scores = pair_scores(images, texts, all_gather(batch.image_id), pairs or None)
            self.add_term(terms, "batch", scores, clock, draws)
        return terms

    def add_term(self, terms: Terms, slot: str, scores: Scores, clock: Clock, draws: Draws) -> None:
        """Add the loss of ``slot`` to ``terms`` under that name, and its report."""
        loss = self.slots[slot]
        assert isinstance(loss, ScoreLoss)
        terms.losses[slot] = loss(scores, clock, draws)
        terms.report |= {f"{slot}_{key}": number for key, number in loss.report.items()}

    def pretrained_towers(self) -> tuple[tuple[str, ...], ...]:
        """BERT; the image encoder begins with random weights."""
        return (("texts.bert",),)

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """BERT's pooler, the unused norm, and losses of terms of weight 0."""
        idle = {f"slots.{name}" for name in self.slot_names if not self.uses_term(name)}
        return frozenset({"texts.bert.pooler", "images.mlp.unused_norm"} | idle)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Groups for text without BERT, BERT, images, and losses (without decay)."""
        texts = self.texts
        groups = (
            ("text", [texts.project, texts.pool], lr, weight_decay),
            ("bert", [texts.bert], lr * self.config.bert_lr_factor, weight_decay),
            ("image", [self.images], lr, weight_decay),
            ("loss", [self.slots], lr, 0.0),
        )
        named = (
            ParameterGroup(name, parameter_names(self, modules), rate, decay)
            for name, modules, rate, decay in groups
        )
        return [group for group in named if group.names]
