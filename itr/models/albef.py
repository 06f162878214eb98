"""ALBEF: Align before Fuse, vision and language learning with momentum distillation (NeurIPS 2021).

Li, Selvaraju, Gotmare, Joty, Xiong, Hoi. A ViT and the lower half of BERT are aligned by a
contrastive loss (ITC) whose candidates and soft targets come from momentum encoders; the upper half
of BERT fuses the two and says whether they match (ITM, which also re-ranks) and, in pre-training,
which words were hidden (MLM).

B pairs, N image tokens, L words, E joint width, Q queue size, P pairs of an image and a caption.
v, t: image and caption vectors; g: the momentum encoders'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForMaskedLM

from itr import parallel
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError, DataError
from itr.losses.score import ScoreLoss, Scores
from itr.models.base import Encoded, ParameterGroup, RetrievalModel, SlotScores, Terms
from itr.nn.bert.bert import load_bert, with_loaded_sizes
from itr.nn.bert.fusion import (
    FusionTextConfig,
    KeysValues,
    MLMHead,
    fusion_half,
    load_bert_halves,
    mlm_logits,
    text_half,
    text_states,
)
from itr.nn.bert.masked_lm import mask_tokens, masked_positions, mlm_loss
from itr.nn.chunked import in_chunks
from itr.nn.gradcam import AttentionTrace, caption_maps, trace_attention
from itr.nn.hard_negatives import (
    HardNegatives,
    draw_negatives,
    matching_loss,
    negative_weights,
)
from itr.nn.momentum import MomentumTwin, fill_momentum_weights
from itr.nn.position import resize_positions
from itr.nn.queue import FeatureQueue, queue_products, soft_targets
from itr.nn.vit import POSITIONS, ImageConfig, load_vit_weights, random_vit
from itr.view import Facts, PixelView, TextView, View

TASKS = ("retrieval", "pretrain")
TEMPERATURES = (0.001, 0.5)
NEEDS_ITC = {"vision_proj", "text_proj", "slots.itc"}
HEAT_LAYER = 2


@dataclass
class ALBEFConfig:
    """Options of `ALBEF`; the defaults are those of fine-tuning on retrieval."""

    task: str = "retrieval"  # retrieval | pretrain (adds MLM; only a pair's own partner matches)
    pretrained: bool = True
    init: str | None = None  # a checkpoint to start from; read by whoever builds the model
    embed_size: int = 256
    queue_size: int = 65536
    temperature: float = 0.07  # at the start; learnt
    temperature_lr_factor: float = 1.0  # a high rate must not reach it: 0.07 is soon 0.01
    clamp_temperature: bool = True  # false: free in fine-tuning, as the authors' is
    momentum: float = 0.995
    momentum_fusion: bool = False  # also keep momentum copies that fine-tuning never uses
    momentum_eval_mode: bool = False  # true: no dropout in the momentum encoders
    distill: bool = True
    distill_words: bool = True  # false: only the contrast has soft targets (ablation)
    distill_weight: float = 0.4  # share of the momentum encoders' opinion in the targets
    distill_warmup: bool = True  # it grows from 0 during the first epoch
    hard_negatives: bool = True  # false: ITM negatives are drawn evenly (ablation)
    negative_floor: float = 1e-4  # 0: as the authors; a confident row may then have no candidate
    mask_probability: float = 0.15
    train_length: int | None = None  # ids of a training caption; None: as many as BERT takes
    eval_length: int = 30
    # Least and largest share of a training image's area in a random crop.
    crop_scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    flip: bool = True
    randaugment: bool = True
    randaugment_wraparound: bool = False  # true: the authors' 8-bit arithmetic, which wraps around
    image: ImageConfig = field(default_factory=ImageConfig)
    text: FusionTextConfig = field(default_factory=FusionTextConfig)


class ALBEFFeatures(NamedTuple):
    """One modality, encoded."""

    unit: Tensor  # [B, E] float32, unit length
    tokens: Tensor  # [B, N, Dv] or [B, L, D]


class MomentumFeatures(NamedTuple):
    """What the momentum encoders say of a batch; carries no gradient."""

    images: Tensor  # [B, E]
    texts: Tensor  # [B, E]
    image_tokens: Tensor  # [B, N, Dv]


# 3.1 Encoders; the owner of the modules is the model or its momentum twin


def image_features(owner: nn.Module, pixels: Tensor) -> ALBEFFeatures:
    """[B, 3, H, W] -> the image side."""
    tokens = owner.get_submodule("vision").forward_features(pixels)  # type: ignore[operator]
    return ALBEFFeatures(_unit(owner.get_submodule("vision_proj")(tokens[:, 0])), tokens)


def text_features(owner: nn.Module, tokens: Tensor, mask: Tensor) -> ALBEFFeatures:
    """[B, L] twice -> the caption side."""
    states = text_states(owner.get_submodule("text"), tokens, mask)
    return ALBEFFeatures(_unit(owner.get_submodule("text_proj")(states[:, 0])), states)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


class ALBEF(RetrievalModel):
    """Slot: ``itc``, on each image against the captions of batch and queue, and the other way."""

    Config = ALBEFConfig
    slot_names = ("itc",)
    tasks = TASKS
    shares_batch_loss = False
    term_names = ("itc", "itm", "mlm")
    symmetric_rerank = True
    size_key = "image.size"
    rerank_block = 16
    config: ALBEFConfig

    def __init__(
        self, config: ALBEFConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        self._check()
        image, text = config.image, config.text
        self.vision = random_vit(image)
        whole = None
        if config.pretrained:
            load_vit_weights(self.vision, image.name)
            whole = load_bert(text.name, text.dropout, BertForMaskedLM)
            config, self.facts = with_loaded_sizes(config, facts, whole.bert)
            text = config.text
        self.config = replace(config, pretrained=False)
        self.view = self.view_for(self.config)
        self.text = text_half(text, self.facts.vocabulary)
        self.fusion = fusion_half(text, image.width)
        self.vision_proj = nn.Linear(image.width, config.embed_size)
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
            load_bert_halves(whole, self.text, self.fusion, self.words if self.pretrains else None)
        self.twin = MomentumTwin(
            {name: self.get_submodule(name) for name in self._copied()},
            config.momentum,
            training=not config.momentum_eval_mode,
        )
        self.pending: tuple[MomentumFeatures, Tensor] | None = None

    @property
    def pretrains(self) -> bool:
        """Whether this is pre-training."""
        return self.config.task == "pretrain"

    def _copied(self) -> list[str]:
        names = ["vision", "vision_proj", "text", "text_proj"]
        if self.pretrains or self.config.momentum_fusion:
            names.append("fusion")
        return [*names, "words"] if self.pretrains else names

    def _check(self) -> None:
        config, text = self.config, self.config.text
        if config.task not in TASKS:
            raise ConfigError(
                f"model.task: '{config.task}' is unknown; expected one of {', '.join(TASKS)} "
                "(task=pretrain sets it)"
            )
        if config.queue_size < 0:
            raise ConfigError(
                f"model.queue_size={config.queue_size}: expected 0 (no queue) or more"
            )
        if not 0 < text.fusion_layer < text.depth:
            raise ConfigError(
                f"model.text.fusion_layer: {text.fusion_layer} must lie between 1 and "
                f"{text.depth - 1}, so that BERT's {text.depth} layers "
                "(model.text.depth) give a text half and a fusion half"
            )
        if self.slots and not (self.pretrains or self.uses_term("itc") or self.uses_term("itm")):
            raise ConfigError(
                "loss.weights: task=retrieval has no term mlm, and itc and itm count nothing; type "
                "loss.weights.itc=1"
            )
        if self.pretrains and self.facts.mask_id is None:
            raise ConfigError(
                "task=pretrain: the tokenizer has no [MASK], which masked-word modelling needs"
            )
        if config.pretrained and text.tokenizer == "wordpiece":
            raise ConfigError(
                "model.text.tokenizer=wordpiece: a built vocabulary does not fit pre-trained "
                "weights; type model.pretrained=false, or leave model.text.tokenizer=null"
            )

    @classmethod
    def view_for(cls, config: ALBEFConfig) -> View:
        """Pixels; captions as epochs' unit, in pre-training images with a drawn caption."""
        text, size = config.text, config.image.size
        longest = min(config.train_length or text.max_positions, _positions(config))
        return View(
            kind="pixels",
            tokenizer=text.tokenizer or text.name,
            unit="image" if config.task == "pretrain" else "caption",
            text=TextView(cleaner="albef", end=False, max_length=longest),
            text_eval=TextView(
                cleaner="albef", end=False, max_length=min(config.eval_length, _positions(config))
            ),
            pixels=PixelView(
                size=size,
                resize="random_crop",
                crop_scale=(config.crop_scale[0], config.crop_scale[1]),
                flip=config.flip,
                randaugment=config.randaugment,
                wrapping=config.randaugment_wraparound,
            ),
            pixels_eval=PixelView(size=size),
            vocabulary_size=text.vocabulary_size,
        )

    @classmethod
    def slot_scores(cls, config: ALBEFConfig, slot: str) -> SlotScores:
        """Cosines, at a temperature of the model's own, with the momentum encoders' targets."""
        return SlotScores(soft="model.distill" if config.distill else None, scale=True)

    def encode_images(self, batch: Batch) -> Encoded:
        """Unit vectors [B, E], and all image tokens for re-ranking."""
        assert batch.pixels is not None
        side = image_features(self, batch.pixels)
        return Encoded(side.unit, side.tokens)

    def encode_texts(self, batch: Batch) -> Encoded:
        """Unit vectors [B, E], and all word states for re-ranking."""
        tokens, mask = self._words(batch)
        side = text_features(self, tokens, mask)
        return Encoded(side.unit, side.tokens, mask)

    def _words(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token ids and their mask. Raises DataError for captions that BERT cannot take."""
        assert batch.tokens is not None and batch.token_mask is not None
        if batch.tokens.shape[1] > (most := _positions(self.config)):
            raise DataError(
                f"a caption of {batch.tokens.shape[1]} ids, but BERT has {most} positions; type "
                f"model.train_length={most} (or less), model.eval_length={most}"
            )
        return batch.tokens, batch.token_mask

    # The training step

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """What belongs to terms without a weight, and a temperature that no loss reads."""
        asleep = set() if self.uses_term("itm") else {"itm_head"}
        if not (self.uses_term("itc") and self.reads_model_scale(["itc"])):
            asleep.add("temperature")
        if self.pretrains and not self.uses_term("mlm"):
            asleep.add("words")
        if not self.uses_term("itm") and not (self.pretrains and self.uses_term("mlm")):
            asleep.add("fusion")
        return frozenset(asleep if self.uses_term("itc") else asleep | NEEDS_ITC)

    def before_step(self, clock: Clock) -> None:
        """Keep the temperature in its range; move the momentum encoders."""
        if self.config.clamp_temperature:
            with torch.no_grad():
                self.temperature.clamp_(*TEMPERATURES)
        self.twin.update()

    def alpha(self, clock: Clock) -> float:
        """Share of the momentum encoders in the soft targets at ``clock``."""
        if not (self.config.distill_warmup and clock.epoch == 0 and clock.batches_per_epoch):
            return self.config.distill_weight
        return self.config.distill_weight * min(1.0, clock.batch / clock.batches_per_epoch)

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Terms ``itc``, ``itm`` and, in pre-training, ``mlm``."""
        states = self.states(batch) | self.frozen_states(batch)
        return self.terms_of(states, batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Vectors and tokens of images and captions."""
        assert batch.pixels is not None
        images, texts = image_features(self, batch.pixels), text_features(self, *self._words(batch))
        return {
            "image": images.unit,
            "image_tokens": images.tokens,
            "text": texts.unit,
            "text_tokens": texts.tokens,
        }

    @torch.no_grad()
    def frozen_states(self, batch: Batch) -> dict[str, Tensor]:
        """What the momentum encoders say of the batch."""
        assert batch.pixels is not None
        images = image_features(self.twin, batch.pixels)
        texts = text_features(self.twin, *self._words(batch))
        return {"image_key": images.unit, "text_key": texts.unit, "key_tokens": images.tokens}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The terms of what `states` and `frozen_states` gave."""
        assert batch.image_id is not None
        tokens, mask = self._words(batch)
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
        guesses = self.pretrains and self.uses_term("mlm")
        if not (guesses or self.uses_term("itm")):
            return terms
        fused = self.fusion.keys_values(images.tokens)
        if self.uses_term("itm"):
            chosen = self.negatives(scores, draws)
            logits = self.matching_logits(texts.tokens, mask, fused, chosen)
            terms.losses["itm"] = matching_loss(logits, chosen)
        if guesses:
            terms.losses["mlm"] = self.masked_words(tokens, mask, fused, keys, alpha, draws)
        return terms

    def after_step(self, clock: Clock) -> None:
        """Enqueue the momentum vectors of all ranks, in rank order."""
        if self.pending is None:
            return
        (keys, ids), self.pending = self.pending, None
        self.image_queue.enqueue(parallel.all_gather(keys.images))
        gathered = None if self.pretrains else parallel.all_gather(ids)
        self.text_queue.enqueue(parallel.all_gather(keys.texts), gathered)

    # 3.2 and 3.3 Image-text contrast with momentum distillation

    def contrast(
        self, v: Tensor, t: Tensor, keys: MomentumFeatures, ids: Tensor, alpha: float
    ) -> Scores:
        """Cosines of ``v``, ``t`` [B, E] with the momentum vectors of the batch, then the queue:
        values [B, B + Q] both ways, with soft targets (equation 6) where the loss takes them."""
        with torch.autocast(v.device.type, enabled=False):
            scale, match = 1.0 / self.temperature, self._matches(ids)
            slot = self.slots["itc"] if "itc" in self.slots else None
            soft = self.config.distill and slot is not None and bool(slot.uses_soft)
            t_bank, v_bank = self.text_queue.features, self.image_queue.features

            def side(own: Tensor, teacher: Tensor, other: Tensor, bank: Tensor) -> Scores:
                values = queue_products(own, other, bank)
                target = None
                if soft:
                    opinion = queue_products(teacher, other, bank) * scale
                    target = soft_targets(opinion, match, alpha)
                rows = torch.arange(len(ids), device=ids.device)
                return Scores(values, match, rows, soft=target, scale=scale)

            i2t = side(v, keys.images, keys.texts, t_bank)
            return replace(i2t, back=side(t, keys.texts, keys.images, v_bank))

    def _matches(self, ids: Tensor) -> Tensor:
        """[B, B + Q] bool. In pre-training a pair knows its own partner only."""
        if not self.pretrains:
            return ids[:, None] == torch.cat([ids, self.text_queue.ids])[None, :]
        return torch.eye(
            len(ids), len(ids) + len(self.text_queue), dtype=torch.bool, device=ids.device
        )

    # 3.2 Image-text matching with hard negatives

    def negatives(self, scores: Scores, draws: Draws) -> HardNegatives:
        """A wrong image for each caption and a wrong caption for each image of the batch."""
        back = scores.reverse()
        count, strength = len(scores.values), (1.0 / self.temperature).detach()
        forbidden = scores.match[:, :count]
        if not self.config.hard_negatives:
            strength = torch.zeros_like(strength)
        floor = self.config.negative_floor
        return draw_negatives(
            negative_weights(back.values[:, :count] * strength, forbidden, floor),
            negative_weights(scores.values[:, :count] * strength, forbidden, floor),
            draws,
        )

    def matching_logits(
        self, states: Tensor, mask: Tensor, images: list[KeysValues], chosen: HardNegatives
    ) -> Tensor:
        """[3B, 2], all in one pass: the pairs; captions with wrong images; images with wrong
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
        Each ``block`` of pairs reads its image's keys and values where they lie."""
        assert images.tokens is not None and texts.tokens is not None and texts.mask is not None
        text_of, block_of = pairs[:, 1], pairs[::block, 0]
        fused = self.fusion.keys_values(images.tokens)
        return self._match(texts.tokens[text_of], texts.mask[text_of], fused, block_of)[:, 1]

    # 6 Where a caption was found in an image: Grad-CAM on the attention of a fusion layer

    def heat(self, images: Batch, texts: Batch) -> Tensor:
        """[P, g, g] of pairs, from the third fusion layer (or the last)."""
        assert texts.token_mask is not None
        layer = min(HEAT_LAYER, len(self.fusion.layers) - 1)
        return caption_maps(self.trace_fusion(images, texts, layer).evidence, texts.token_mask)

    def trace_fusion(self, images: Batch, texts: Batch, layer: int) -> AttentionTrace:
        """Attention to the image in fusion layer ``layer`` and the gradient of the match logits."""
        pictures, words = self.encode_images(images), self.encode_texts(texts)
        assert pictures.tokens is not None and words.tokens is not None and words.mask is not None
        states, mask = words.tokens, words.mask
        fused = self.fusion.keys_values(pictures.tokens)
        attention = self.fusion.get_submodule(f"layers.{layer}.image")

        def match() -> Tensor:  # of all words, so that the last layer shows them, too
            return self.itm_head(self.fusion(states, mask, fused)[:, 0])[:, 1].sum()

        return trace_attention(attention, match)

    # 3.2 and 3.3 Masked words, pre-training only

    def masked_words(
        self,
        tokens: Tensor,
        mask: Tensor,
        images: list[KeysValues],
        keys: MomentumFeatures,
        alpha: float,
        draws: Draws,
    ) -> Tensor:
        """The cost of guessing hidden words, with the momentum encoders' guesses as soft targets
        (equation 7)."""
        probability, mask_id = self.config.mask_probability, self.facts.mask_id
        assert mask_id is not None
        hidden = mask_tokens(tokens, mask, draws, probability, mask_id, self.facts.vocabulary)
        places = masked_positions(hidden.labels, probability)
        teacher = None
        if self.config.distill and self.config.distill_words:
            with torch.no_grad():
                fusion = self.twin.get_submodule("fusion")
                seen = fusion.keys_values(keys.image_tokens)  # type: ignore[operator]
                teacher = mlm_logits(self.twin, hidden.tokens, mask, seen, places)
        student = mlm_logits(self, hidden.tokens, mask, images, places, self.chunk_pairs)
        return mlm_loss(student, hidden.labels.flatten()[places], teacher, alpha)

    # Parameters and starting points

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Without decay: vectors (biases, norms) and whatever a loss owns. All else decays, tables
        of embeddings and the temperature included."""
        owned = {id(parameter) for parameter in self.slots.parameters()}
        factor, alone = self.config.temperature_lr_factor, "temperature"
        free: list[str] = []
        decaying: list[str] = []
        for name, parameter in self.named_parameters():
            if factor == 1.0 or name != alone:
                (free if parameter.ndim == 1 or id(parameter) in owned else decaying).append(name)
        groups = [
            ParameterGroup("no_decay", tuple(free), lr, 0.0),
            ParameterGroup("decay", tuple(decaying), lr, weight_decay),
        ]
        if factor != 1.0:
            groups.append(ParameterGroup(alone, (alone,), lr * factor, weight_decay))
        return groups

    def fit_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` of another ALBEF with position embeddings resized to this one's image, and with
        momentum encoders equal to its encoders where it has none."""
        fitted, grid = dict(state), self.vision.patch_embed.grid_size
        for name in (f"vision.{POSITIONS}", f"twin.vision.{POSITIONS}"):
            if name in fitted:
                fitted[name] = resize_positions(fitted[name], grid)
        return fill_momentum_weights(fitted, self.state_dict())


def _positions(config: ALBEFConfig) -> int:
    return config.text.max_positions
