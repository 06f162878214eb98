"""BLIP: contrast and matching over one text encoder, zero-shot or fine-tuned.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training" (ICML 2022). The model and its weights
are those of transformers (`BlipForImageTextRetrieval`). Evaluation is the paper's: cosines, then
match scores of the best candidates. Fine-tuning is ours: ALBEF's terms, momentum encoders, queues
and hard negatives, which the paper says it keeps.

B pairs, N image tokens, L token ids, E joint width, D text width, P pairs to re-rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.batch import Batch
from itr.clock import Clock
from itr.data.text.known_tokenizers import LEARNED
from itr.draws import Draws
from itr.errors import ConfigError
from itr.losses.score import ScoreLoss
from itr.models.base import Encoded, ParameterGroup, SlotScores, Terms, parameter_names
from itr.models.momentum_contrast import TEMPERATURES, MomentumContrast, MomentumFeatures
from itr.nn.chunked import in_chunks
from itr.nn.distillation import ramped_weight
from itr.nn.hard_negatives import HardNegatives, matching_loss
from itr.nn.lora import LoRAConfig
from itr.nn.momentum import MomentumTwin
from itr.nn.queue import FeatureQueue
from itr.nn.tower.architecture import Architecture, read_architecture
from itr.nn.tower.blip_tower import (
    ADDED,
    RETRIEVAL,
    KeysValues,
    build_blip,
    first_id_replaced,
    keys_values,
    load_blip,
    text_states,
)
from itr.nn.tower.tower_names import KEY
from itr.options import configured, option
from itr.view import FLIPS, Facts, View

COPIED = ("vision_model", "vision_proj", "text_encoder", "text_proj")  # by the momentum encoders


@dataclass
@configured("model/blip.yaml", "model")
class BLIPConfig:
    """Options of `BLIP`."""

    tower: str | None = option()
    architecture: dict[str, Any] | None = option()
    pretrained: bool = option()
    init: str | None = option()
    lora: LoRAConfig = option()
    fused_token: str = option(choices=("enc", "cls"))
    max_length: int | None = option(at_least=2)
    queue_size: int = option(at_least=0)
    temperature: float = option(above=0)
    momentum: float = option(at_least=0, at_most=1)
    distill: bool = option()
    distill_weight: float = option(at_least=0, at_most=1)
    distill_warmup: bool = option()
    hard_negatives: bool = option()
    negative_floor: float = option(at_least=0)
    crop_scale: list[float] = option(above=0, at_most=1)
    flip: bool | str = option(choices=FLIPS)
    randaugment: bool = option()


def architecture_of(config: BLIPConfig) -> Architecture:
    """The architecture in ``config``, else that of ``config.tower``."""
    if config.architecture is not None:
        return Architecture.from_dict(config.architecture)
    return read_architecture(config.tower, RETRIEVAL)


class BLIP(MomentumContrast):
    """Slot ``itc`` scores images against the captions of the batch and the queue, and back."""

    Config = BLIPConfig
    slot_names = ("itc",)
    term_names = ("itc", "itm")
    shares_batch_loss = False
    symmetric_rerank = True
    rerank_block = 16
    config: BLIPConfig

    def __init__(
        self, config: BLIPConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        architecture = architecture_of(config)
        config = dataclasses.replace(config, architecture=architecture.to_dict())
        super().__init__(config, slots, weights, facts)
        if slots and not any(map(self.uses_term, self.term_names)):
            raise ConfigError(
                "loss.weights: itc and itm are 0, so nothing would be trained; pass "
                "loss.weights.itc=1"
            )
        if config.pretrained:
            assert config.tower is not None
            self.tower = load_blip(config.tower, architecture.config, KEY)
        else:
            learned = facts.vocabulary if architecture.tokenizer in LEARNED else None
            self.tower = build_blip(architecture, learned)
        self.first_id = self._first_id(facts.vocabulary)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        width = architecture.config["image_text_hidden_size"]
        self.image_queue = FeatureQueue(width, config.queue_size)
        self.text_queue = FeatureQueue(width, config.queue_size, with_ids=True)
        sources = {name: self.tower.get_submodule(name) for name in COPIED}
        self.twin = MomentumTwin(sources, config.momentum)

    @property
    def text_encoder(self) -> Any:
        """The tower's; a property, as an attribute would save it twice."""
        return self.tower.get_submodule("text_encoder")

    def _first_id(self, vocabulary: int) -> int | None:
        """The id that a text begins with where it sees an image; None: its own."""
        if self.config.fused_token == "cls":
            return None
        ids = self.text_encoder.embeddings.word_embeddings.num_embeddings
        if vocabulary > ids - 1:
            raise ConfigError(
                f"model.fused_token=enc: the tower has {ids} ids and its tokenizer {vocabulary}, "
                "so none is left for [ENC]; expected a tower of Salesforce's. Pass "
                "model.fused_token=cls"
            )
        return ids - 1

    @classmethod
    def view_for(cls, config: BLIPConfig) -> View:
        """Pixels and texts as the tower's processor prepares them, texts of ``max_length`` ids."""
        architecture = architecture_of(config)
        text, pixels = architecture.text_view(), architecture.pixel_view()
        if config.max_length is not None:
            longest = min(config.max_length, text.max_length or config.max_length)
            text = dataclasses.replace(text, max_length=longest)
        low, high = config.crop_scale
        return View(
            kind="pixels",
            tokenizer=architecture.tokenizer,
            whole_tokenizer=architecture.whole_tokenizer,
            unit="pair",
            text=text,
            text_eval=text,
            pixels=dataclasses.replace(
                pixels,
                resize="random_crop",
                resize_to=None,
                crop_scale=(low, high),
                flip=bool(config.flip),
                flip_sided=config.flip is True,
                randaugment=config.randaugment,
            ),
            pixels_eval=pixels,
            vocabulary_size=architecture.vocabulary_size() - ADDED,
        )

    @classmethod
    def slot_scores(cls, config: BLIPConfig, slot: str) -> SlotScores:
        """Cosines at the model's temperature, with soft targets if it distills."""
        return SlotScores(soft="model.distill" if config.distill else None, scale=True)

    # Encoding, and match scores of candidates

    def encode_images(self, batch: Batch) -> Encoded:
        """Unit embeddings [B, E], and all image tokens for re-ranking."""
        assert batch.pixels is not None
        return Encoded(*self._images(self.tower, batch.pixels))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Unit embeddings [B, E], and the word embeddings [B, L, D] that re-ranking begins with."""
        assert batch.tokens is not None
        unit = self._texts(self.tower, batch)
        return Encoded(unit, self._words(batch.tokens), batch.token_mask)

    def rerank(
        self, images: Encoded, texts: Encoded, pairs: Tensor, direction: str, block: int = 1
    ) -> Tensor:
        """Match logits [P] of ``pairs`` [P, 2] (image row, text row), the same both ways.

        An image is projected once, and each ``block`` of pairs shares its keys and values.
        """
        assert images.tokens is not None and texts.tokens is not None and texts.mask is not None
        text_of, image_of = pairs[:, 1], pairs[::block, 0]
        projected = keys_values(self.text_encoder, images.tokens)
        words, mask = texts.tokens[text_of], texts.mask[text_of]
        return self._match(words, mask, projected, image_of)[:, 1]

    def _images(self, owner: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings and tokens [B, N, Dv] by ``owner``: the tower or its momentum copy."""
        vision: Any = owner.get_submodule("vision_model")
        tokens = vision(pixel_values=pixels).last_hidden_state
        return _unit(owner.get_submodule("vision_proj")(tokens[:, 0])), tokens

    def _texts(self, owner: nn.Module, batch: Batch) -> Tensor:
        """Unit embeddings of the captions by ``owner``."""
        assert batch.tokens is not None and batch.token_mask is not None
        encoder: Any = owner.get_submodule("text_encoder")
        words = encoder.embeddings(input_ids=batch.tokens)
        states = text_states(encoder, words, batch.token_mask, first_only=True)
        return _unit(owner.get_submodule("text_proj")(states[:, 0]))

    def _words(self, tokens: Tensor) -> Tensor:
        """Word embeddings [B, L, D] of texts that will see an image."""
        ids = tokens if self.first_id is None else first_id_replaced(tokens, self.first_id)
        return self.text_encoder.embeddings(input_ids=ids)

    def _match(
        self, words: Tensor, mask: Tensor, images: list[KeysValues], image_of: Tensor
    ) -> Tensor:
        """Match logits [P, 2]."""
        fused = text_states(self.text_encoder, words, mask, images, image_of, first_only=True)
        return self.tower.get_submodule("itm_head")(fused[:, 0])

    # The training step

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """Modules of terms of weight 0, and the temperature if no loss reads it."""
        asleep = set()
        if not self.uses_term("itm"):
            asleep.add("tower.itm_head")
            depth = len(self.text_encoder.encoder.layer)
            asleep |= {f"tower.text_encoder.encoder.layer.{n}.crossattention" for n in range(depth)}
        if not (self.uses_term("itc") and self.reads_model_scale(["itc"])):
            asleep.add("temperature")
        if not self.uses_term("itc"):
            asleep |= {"tower.vision_proj", "tower.text_proj", "slots.itc"}
        return frozenset(asleep)

    def towers(self) -> dict[str, tuple[str, ...]]:
        """The encoders; that of texts also sees images."""
        return {"image": ("tower.vision_model",), "text": ("tower.text_encoder",)}

    def pretrained_modules(self) -> tuple[str, ...]:
        """The whole tower, with its projections and the head that matches."""
        return ("tower",)

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        """Clamp the temperature to its range and update the momentum encoders."""
        self.temperature.clamp_(*TEMPERATURES)
        self.twin.update()

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Terms ``itc`` and ``itm``."""
        states = self.states(batch) | self.frozen_states(batch)
        return self.terms_of(states, batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings of images and captions, image tokens, and word embeddings."""
        assert batch.pixels is not None and batch.tokens is not None
        image, tokens = self._images(self.tower, batch.pixels)
        text, words = self._texts(self.tower, batch), self._words(batch.tokens)
        return {"image": image, "image_tokens": tokens, "text": text, "words": words}

    @torch.no_grad()
    def frozen_states(self, batch: Batch) -> dict[str, Tensor]:
        """The batch's features from the momentum encoders."""
        assert batch.pixels is not None
        image, tokens = self._images(self.twin, batch.pixels)
        text = self._texts(self.twin, batch)
        return {"image_key": image, "text_key": text, "key_tokens": tokens}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The terms from the output of `states` and `frozen_states`."""
        assert batch.image_id is not None and batch.token_mask is not None
        keys = MomentumFeatures(states["image_key"], states["text_key"], states["key_tokens"])
        self.pending = (keys, batch.image_id)
        weight, warmup = self.config.distill_weight, self.config.distill_warmup
        alpha, terms = ramped_weight(weight, warmup, clock), Terms({})
        scores = self.contrast(states["image"], states["text"], keys, batch.image_id, alpha)
        terms.report["temperature"] = self.temperature.detach()
        if self.uses_term("itc"):
            slot = self.slots["itc"]
            assert isinstance(slot, ScoreLoss)
            terms.losses["itc"] = slot(scores, clock, draws)
        if self.uses_term("itm"):
            chosen = self.negatives(scores, draws)
            images = keys_values(self.text_encoder, states["image_tokens"])
            logits = self.matching_logits(states["words"], batch.token_mask, images, chosen)
            terms.losses["itm"] = matching_loss(logits, chosen)
        return terms

    def matching_logits(
        self, words: Tensor, mask: Tensor, images: list[KeysValues], chosen: HardNegatives
    ) -> Tensor:
        """Logits [3B, 2]: pairs; captions with negative images; images with negative captions."""

        def logits(text_of: Tensor, image_of: Tensor) -> Tensor:
            return self._match(words.index_select(0, text_of), mask[text_of], images, image_of)

        rows = None if self.chunk_pairs is None else 3 * self.chunk_pairs
        return in_chunks(logits, rows, *chosen.rows())

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Matrices decay; gains, biases, the temperature and losses' parameters do not."""
        losses = parameter_names(self, [self.slots])
        named = [(n, p) for n, p in self.named_parameters() if n not in losses]
        groups = (
            ParameterGroup("decay", tuple(n for n, p in named if p.ndim >= 2), lr, weight_decay),
            ParameterGroup("no_decay", tuple(n for n, p in named if p.ndim < 2), lr, 0.0),
            ParameterGroup("loss", losses, lr, 0.0),
        )
        return [group for group in groups if group.names]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
