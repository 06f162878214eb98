"""Multi-SEA: Multi-stage Semantic Enhancement and Aggregation for image-text retrieval.

Tian, Ou, Zhu, Lyu, Zhang, Xiao, Song; Information Processing & Management 62(5), 2025. A forward
pass has three stages: raw data encoding (CLIP patches, RoBERTa tokens), uni-modal enhancing (the
A-Former without cross-attention), and cross-modal fusing (the same A-Former with agent attention).
It is trained with a contrastive loss with a queue and with matching heads at two depths.

B pairs, W ranks, P pairs to match, L rows (tokens or patches), D joint width, K queue size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from itr import parallel
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import ScoreLoss, Scores
from itr.models.base import (
    Encoded,
    ParameterGroup,
    RetrievalModel,
    SlotScores,
    Terms,
    parameter_names,
)
from itr.nn.agent_attention import AFormer, AFormerConfig, Modality, PairRows, first_rows_at_depths
from itr.nn.bert.bert import with_loaded_sizes
from itr.nn.bert.roberta import RobertaTextConfig, build_roberta, roberta_states
from itr.nn.chunked import in_chunks
from itr.nn.clip.towers import CLIPVisionTransformer
from itr.nn.clip.weights import CLIPConfig, build_clip_vision, image_with_loaded_sizes
from itr.nn.hard_negatives import (
    HardNegatives,
    draw_negatives,
    matching_loss,
    negative_weights,
)
from itr.nn.lora import LoRAConfig
from itr.nn.position import resize_positions
from itr.nn.queue import FeatureQueue
from itr.options import configured, option
from itr.view import Facts, PixelView, TextView, View

KINDS = ("text", "image")
NEEDS_ITC = {
    *("slots.itc", "temp", "images.pooler", "images.project_feats"),
    *("texts.roberta.pooler", "texts.project_feats", "aformer.pooler"),
}
TEMP_RANGE, ALPHA_RANGE = (0.1, 3.0), (0.2, 0.8)


@dataclass
@configured("model/multisea.yaml", "model")
class MultiSEAConfig:
    """Options of `MultiSEA`; the defaults are the published ones."""

    pretrained: bool = option()
    init: str | None = option()
    lora: LoRAConfig = option()
    embed_size: int = option(at_least=1)
    text_padding: int = option(at_least=1)
    enhance: bool = option()
    itm_depths: list[int] = option()
    queue_size: int = option(at_least=0)
    negatives: str = option(choices=("all", "local"))
    negative_floor: float = option(at_least=0)
    distill: bool = option()
    distill_weight: float = option(at_least=0, at_most=1)
    encoder_lr_factor: float = option()
    alpha_lr: float = option()
    temperature_lr: float = option()
    image: CLIPConfig = option()
    text: RobertaTextConfig = option()
    aformer: AFormerConfig = option()


Gathered = tuple[Tensor, Tensor, Tensor]  # image feats, text feats and image ids of all ranks


class EnhancedFeatures(NamedTuple):
    """One modality of a batch after stage 2."""

    feats: Tensor  # [B, D] for the contrastive scores; not normalized
    embeds: Tensor  # [B, L, D] for the fusion
    mask: Tensor | None  # [B, L] bool; None: all rows are valid


def append_negatives(side: EnhancedFeatures, wrong: Tensor) -> EnhancedFeatures:
    """``side`` with the rows ``wrong`` [B] of the gathered embeds of all ranks appended.

    The gradient of every rank's loss flows back through them.
    """
    embeds, mask = parallel.all_gather(side.embeds, gradient="full").index_select(0, wrong), None
    if side.mask is not None:
        mask = torch.cat([side.mask, parallel.all_gather(side.mask).index_select(0, wrong)])
    return EnhancedFeatures(side.feats, torch.cat([side.embeds, embeds]), mask)


# Stage 1: raw data encoding


class MultiSEAImageEncoder(nn.Module):
    """CLIP patch embeddings without the last block, and a pooled class token."""

    def __init__(self, config: MultiSEAConfig):
        super().__init__()
        self.tower: CLIPVisionTransformer = build_clip_vision(config.image, config.pretrained)
        width = self.tower.conv1.out_channels
        self.pooler = nn.Linear(width, width)
        self.project_feats = nn.Linear(width, config.embed_size)
        self.project_embeds = nn.Linear(width, config.embed_size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> raw feats [B, D] and embeds [B, L, D]."""
        states = self.tower.ln_post(self.tower.tokens(pixels))
        pooled = self.pooler(states[:, 0]).tanh()
        return self.project_feats(pooled), self.project_embeds(states)


class MultiSEATextEncoder(nn.Module):
    """RoBERTa token states and pooled output."""

    def __init__(self, config: MultiSEAConfig, vocabulary: int):
        super().__init__()
        self.roberta = build_roberta(config.text, config.pretrained, vocabulary)
        width = self.roberta.config.hidden_size
        self.project_feats = nn.Linear(width, config.embed_size)
        self.project_embeds = nn.Linear(width, config.embed_size)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, L], mask [B, L] -> raw feats [B, D] and embeds [B, L, D]."""
        states, pooled = roberta_states(self.roberta, tokens, mask)
        return self.project_feats(pooled), self.project_embeds(states)


# The model


class MultiSEA(RetrievalModel):
    """Slot ``itc`` scores dot products with batch and queue; term ``itm`` matches in both
    directions."""

    Config = MultiSEAConfig
    slot_names = ("itc",)
    shares_batch_loss = False
    term_names = ("itc", "itm")
    size_key = "image.size"
    config: MultiSEAConfig

    def __init__(
        self,
        config: MultiSEAConfig,
        slots: nn.ModuleDict,
        weights: Mapping[str, float],
        facts: Facts,
    ):
        super().__init__(config, slots, weights, facts)
        self._check()
        width = config.embed_size
        self.images = MultiSEAImageEncoder(config)
        self.texts = MultiSEATextEncoder(config, facts.vocabulary)
        self.aformer = AFormer(width, config.aformer)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(torch.tensor(1.0))
        self.alpha = nn.Parameter(torch.tensor(0.7))
        if config.queue_size:
            queue = functools.partial(
                FeatureQueue, width, config.queue_size, init="uniform", overflow="clip"
            )
            self.image_queue, self.text_queue = queue(with_ids=True), queue()
        self.pending: Gathered | None = None  # features of the last step, enqueued after it
        if config.pretrained:
            self._record_loaded_sizes()

    def _check(self) -> None:
        config, text = self.config, self.config.text
        layers = config.aformer.depth
        if not config.itm_depths or not all(0 <= d <= layers for d in config.itm_depths):
            raise ConfigError(
                f"model.itm_depths={config.itm_depths}: expected numbers of layers before the "
                f"last, each from 0 to model.aformer.depth={layers}"
            )
        if text.tokenizer == "wordpiece" and text.pad_id != 0:
            raise ConfigError(
                "model.text.tokenizer=wordpiece: its padding id is 0, but model.text.pad_id is "
                f"{text.pad_id}; pass model.text.pad_id=0 or "
                "model.text.tokenizer=roberta-from-captions"
            )
        room = text.max_positions - text.pad_id - 1
        if not config.pretrained and config.text_padding > room:
            raise ConfigError(
                f"model.text_padding={config.text_padding}: the text encoder has positions for "
                f"{room} ids; pass model.text_padding={room} or less"
            )

    def _record_loaded_sizes(self) -> None:
        """Update config and facts so that they rebuild the architecture without the weights."""
        roberta = self.texts.roberta
        config, self.facts = with_loaded_sizes(self.config, self.facts, roberta)
        pad = roberta.config.pad_token_id
        assert pad is not None
        self.config = dataclasses.replace(
            config,
            image=image_with_loaded_sizes(config.image, self.images.tower),
            text=dataclasses.replace(config.text, pad_id=pad),
        )
        self.view = self.view_for(self.config)
        self._check()

    @classmethod
    def view_for(cls, config: MultiSEAConfig) -> View:
        """Pixels without augmentation; an epoch visits every image with one random caption.

        Captions are cut and padded to a fixed length, because padded rows also become agents.
        """
        text = TextView(max_length=config.text_padding, pad_to=config.text_padding)
        pixels = PixelView(size=config.image.size, resize="shortest", premultiply=True)
        return View(
            kind="pixels",
            tokenizer=config.text.tokenizer or config.text.name,
            unit="image",
            text=text,
            text_eval=text,
            pixels=pixels,
            pixels_eval=pixels,
            padding_is_arithmetic=True,
            vocabulary_size=config.text.vocabulary_size,
        )

    @classmethod
    def slot_scores(cls, config: MultiSEAConfig, slot: str) -> SlotScores:
        """Dot products at the model's temperature, with soft targets if it distills."""
        return SlotScores(
            cosine=False, soft="model.distill" if config.distill else None, scale=True
        )

    # Stages 1 and 2

    def image_features(self, pixels: Tensor) -> EnhancedFeatures:
        """Enhanced features of ``pixels`` [B, 3, H, W]."""
        return self._enhance("image", self.images(pixels), None)

    def text_features(self, tokens: Tensor, mask: Tensor) -> EnhancedFeatures:
        """Enhanced features of token ids [B, L]; ``mask`` [B, L] bool."""
        return self._enhance("text", self.texts(tokens, mask), mask)

    def _enhance(
        self, kind: Modality, raw: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> EnhancedFeatures:
        """Mix the uni-modal output of the A-Former with its input (weight alpha)."""
        raw_feats, raw_embeds = raw
        if not self.config.enhance:
            return EnhancedFeatures(raw_feats.float(), raw_embeds, mask)
        states = self.aformer.unimodal(kind, raw_embeds, mask)[-1]
        pooled, alpha = self.aformer.pooled(states), self.alpha
        feats = alpha * pooled.float() + (1.0 - alpha) * raw_feats.float()
        return EnhancedFeatures(feats, alpha * states + (1.0 - alpha) * raw_embeds, mask)

    def encode_images(self, batch: Batch) -> Encoded:
        """Feats [B, D], not normalized, and embeds for `rerank`."""
        assert batch.pixels is not None
        return Encoded(*self.image_features(batch.pixels))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Feats [B, D], not normalized, and embeds for `rerank`."""
        assert batch.tokens is not None and batch.token_mask is not None
        return Encoded(*self.text_features(batch.tokens, batch.token_mask))

    # Training

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Terms ``itc`` and ``itm``."""
        return self.terms_of(self.states(batch), batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Feats and embeds of images and captions."""
        assert batch.pixels is not None
        assert batch.tokens is not None and batch.token_mask is not None
        images = self.image_features(batch.pixels)
        texts = self.text_features(batch.tokens, batch.token_mask)
        return {
            "image": images.feats,
            "image_embeds": images.embeds,
            "text": texts.feats,
            "text_embeds": texts.embeds,
        }

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The terms from the output of `states`."""
        assert batch.image_id is not None
        images = EnhancedFeatures(states["image"], states["image_embeds"], None)
        texts = EnhancedFeatures(states["text"], states["text_embeds"], batch.token_mask)
        return self.criterion(images, texts, batch.image_id, clock, draws)

    def criterion(
        self,
        images: EnhancedFeatures,
        texts: EnhancedFeatures,
        ids: Tensor,
        clock: Clock,
        draws: Draws,
    ) -> Terms:
        """Both terms of a micro-batch; ``ids`` [B] are image ids."""
        terms = Terms({}, {"temp": self.temp.detach(), "alpha": self.alpha.detach()})
        gather = parallel.all_gather
        self.pending = gathered = gather(images.feats), gather(texts.feats), gather(ids)
        if self.uses_term("itc"):
            loss = self.slots["itc"]
            assert isinstance(loss, ScoreLoss)
            with torch.autocast(ids.device.type, enabled=False):
                terms.losses["itc"] = loss(self.scores(images, texts, ids, clock), clock, draws)
            terms.report.update({f"itc_{key}": value for key, value in loss.report.items()})
        if self.uses_term("itm"):
            negatives = self.hard_negatives(images, texts, ids, gathered, draws)
            terms.losses["itm"] = self.matching(images, texts, negatives)
        return terms

    def scores(
        self, images: EnhancedFeatures, texts: EnhancedFeatures, ids: Tensor, clock: Clock
    ) -> Scores:
        """Dot products with the batch and the queue, both ways. Candidates are detached."""
        all_ids = torch.cat([ids, self.image_queue.ids]) if self.config.queue_size else ids
        match = ids[:, None] == all_ids[None, :]
        own, scale = torch.arange(len(ids), device=ids.device), 1.0 / self.temp

        def one_way(queries: Tensor, keys: Tensor, queue: str) -> Scores:
            keys = keys.detach()
            if self.config.queue_size:
                keys = torch.cat([keys, getattr(self, queue).features])
            values = queries @ keys.t()
            soft = self._soft_targets(values * scale, match, clock)
            return Scores(values, match, own, soft=soft, scale=scale, cosine=False)

        scores = one_way(images.feats, texts.feats, "text_queue")
        scores.back = one_way(texts.feats, images.feats, "image_queue")
        return scores

    def _soft_targets(self, logits: Tensor, match: Tensor, clock: Clock) -> Tensor | None:
        """Soft targets from the model's own softmax, with its gradient; there is no momentum model.

        Their weight ``distill_weight`` is ramped up during the first epoch.
        """
        if not self.config.distill or not self.slots["itc"].uses_soft:
            return None
        share = self.config.distill_weight
        if clock.epoch == 0:
            share *= clock.batch / max(1, clock.batches_per_epoch)
        hard = match.float()
        hard = hard / hard.sum(dim=1, keepdim=True)
        return share * logits.softmax(dim=1) + (1.0 - share) * hard

    @torch.no_grad()
    def hard_negatives(
        self,
        images: EnhancedFeatures,
        texts: EnhancedFeatures,
        ids: Tensor,
        gathered: Gathered,
        draws: Draws,
    ) -> HardNegatives:
        """A negative image for each text and a negative text for each image, drawn by similarity.

        Candidates are those of all ranks or, with ``negatives=local``, of this rank.
        """
        if self.config.negatives == "local":
            gathered = (images.feats, texts.feats, ids)
        all_images, all_texts, all_ids = gathered
        floor = self.config.negative_floor
        same = ids[:, None] == all_ids[None, :]
        with torch.autocast(ids.device.type, enabled=False):
            to_images = negative_weights(texts.feats @ all_images.t() / self.temp, same, floor)
            to_texts = negative_weights(images.feats @ all_texts.t() / self.temp, same, floor)
        return draw_negatives(to_images, to_texts, draws)

    def matching(
        self, images: EnhancedFeatures, texts: EnhancedFeatures, chosen: HardNegatives
    ) -> Tensor:
        """Cross-entropy of 3B pairs, averaged over depths and query modalities."""
        if self.config.negatives == "all" and parallel.world_size() > 1:
            images = append_negatives(images, chosen.images)
            texts = append_negatives(texts, chosen.texts)
            behind = torch.arange(len(chosen.images), device=chosen.images.device)
            behind = behind + len(behind)
            chosen = chosen._replace(images=behind, texts=behind)
        text_of, image_of = chosen.rows()
        image_rows = PairRows(images.embeds, images.mask, image_of)
        text_rows = PairRows(texts.embeds, texts.mask, text_of)
        depths = len(self.config.itm_depths)
        costs = [
            matching_loss(part, chosen)
            for logits in (
                self.match_logits("text", text_rows, image_rows),
                self.match_logits("image", image_rows, text_rows),
            )
            for part in logits.chunk(depths)
        ]
        return torch.stack(costs).mean()

    def match_logits(
        self, kind: Modality, queries: PairRows, others: PairRows, last_only: bool = False
    ) -> Tensor:
        """Logits [d * P, 2] at the d depths, concatenated; column 1 is a match.

        ``last_only``: only after the last layer.
        """
        depths = [0] if last_only else self.config.itm_depths
        rows = None if self.chunk_pairs is None else 3 * self.chunk_pairs
        memories = None if rows is None else self.aformer.memories(kind, others.embeds)

        def logits(query: Tensor, other: Tensor) -> Tensor:
            pairs = queries._replace(chosen=query), others._replace(chosen=other)
            states = self.aformer.fused(kind, *pairs, memories=memories)
            by_depth = self.itm_head(first_rows_at_depths(states, depths)).unflatten(
                0, (len(depths), -1)
            )
            return by_depth.transpose(0, 1)  # [P, d, 2]: chunks are concatenated by pairs

        by_pair = in_chunks(logits, rows, queries.chosen, others.chosen)
        return by_pair.transpose(0, 1).flatten(0, 1)

    def before_step(self, clock: Clock) -> None:
        """Clamp the temperature and the mixing weight alpha to their ranges."""
        with torch.no_grad():
            self.temp.clamp_(*TEMP_RANGE)
            self.alpha.clamp_(*ALPHA_RANGE)

    def after_step(self, clock: Clock) -> None:
        """Enqueue the feats of all ranks; rows beyond the end of the queue are dropped."""
        if self.pending is None or not self.config.queue_size:
            return
        images, texts, ids = self.pending
        self.image_queue.enqueue(images, ids)
        self.text_queue.enqueue(texts)
        self.pending = None

    # Evaluation

    def rerank(
        self, images: Encoded, texts: Encoded, pairs: Tensor, direction: str, block: int = 1
    ) -> Tensor:
        """Scores [P]: match logit plus similarity / temperature.

        The image is the query modality for ``direction`` i2t, the text for t2i.
        """
        assert images.tokens is not None and texts.tokens is not None and texts.mask is not None
        image, text = pairs.unbind(dim=1)
        # ``images`` holds only the images of these pairs; ``texts`` may be a whole gallery.
        image_rows = PairRows(images.tokens, None, image)
        every = torch.arange(len(pairs), device=pairs.device)
        text_rows = PairRows(texts.tokens[text], texts.mask[text], every)
        if direction == "i2t":
            logits = self.match_logits("image", image_rows, text_rows, last_only=True)
        else:
            logits = self.match_logits("text", text_rows, image_rows, last_only=True)
        similarity = (images.pooled[image].float() * texts.pooled[text].float()).sum(dim=1)
        return logits[:, 1].float() + similarity / self.temp

    # Parameters

    def fit_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` of another Multi-SEA with position embeddings resized to this one's image."""
        fitted, name = dict(state), "images.tower.positional_embedding"
        if name in fitted:
            fitted[name] = resize_positions(fitted[name], self.images.tower.grid)
        return fitted

    def pretrained_towers(self) -> tuple[tuple[str, ...], ...]:
        """CLIP's image tower and RoBERTa."""
        return (("images.tower",), ("texts.roberta",))

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """CLIP except its last blocks and final norm; modules used only by terms of weight 0."""
        image, part = self.config.image, self.config.aformer
        names: set[str] = set()
        if image.trained_layers is not None and self.config.lora.rank is None:  # else LoRA decides
            frozen = ["class_embedding", "positional_embedding", "conv1", "ln_pre"]
            first = image.depth - image.trained_layers
            frozen += [f"transformer.resblocks.{i}" for i in range(first)]
            names |= {f"images.tower.{name}" for name in frozen}
        soft = self.config.distill and self.slots["itc"].uses_soft  # they carry its gradient
        if not self.uses_term("itc"):
            names |= NEEDS_ITC
        elif not soft and not self.reads_model_scale(["itc"]):
            names.add("temp")
        if not self.uses_term("itm"):
            names.add("itm_head")
            names |= {f"aformer.{kind}.{i}.cross" for kind in KINDS for i in range(part.depth)}
        if not self.config.enhance:
            names |= {"aformer.pooler", "alpha"}
        return frozenset(names)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """The authors' four groups, which all decay, and the losses."""
        config, images, texts = self.config, self.images, self.texts
        heads: list[nn.Module] = [images.pooler, images.project_feats, images.project_embeds]
        heads += [texts.project_feats, texts.project_embeds, self.aformer, self.itm_head]
        encoders: list[nn.Module] = [images.tower, texts.roberta]
        groups = (
            ("default", parameter_names(self, heads), lr, weight_decay),
            (
                "encoder",
                parameter_names(self, encoders),
                lr * config.encoder_lr_factor,
                weight_decay,
            ),
            ("alpha", ("alpha",), config.alpha_lr, weight_decay),
            ("temp", ("temp",), config.temperature_lr, weight_decay),
            ("loss", parameter_names(self, [self.slots]), lr, 0.0),
        )
        return [ParameterGroup(*group) for group in groups if group[1]]
