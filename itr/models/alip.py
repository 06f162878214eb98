"""ALIP: Adaptive Language-Image Pre-training with Synthetic Caption (ICCV 2023).

Yang, Deng, An, Li, Feng, Guo, Yang, Liu. A CLIP dual encoder trains on images with two texts: the
raw text from the web and a synthetic caption. Gates compare the similarities of the three with
running means; similarities below the mean lower the weight of a sample or pair in the contrastive
losses.

B samples of one rank, N of all ranks, D joint width, L token ids. x, t, c: unit embeddings of
image, raw text and synthetic caption.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr import parallel
from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import ConfigError, DataError
from itr.losses.score import ScoreLoss, Scores, pair_scores
from itr.models.base import (
    Encoded,
    ParameterGroup,
    RetrievalModel,
    SlotScores,
    Terms,
    parameter_names,
)
from itr.nn.clip.resnet import CLIPResNet
from itr.nn.clip.towers import CLIPTextTransformer, CLIPVisionTransformer
from itr.nn.lora import LoRAConfig
from itr.nn.position import resize_positions
from itr.options import configured, option
from itr.view import Facts, PixelView, TextView, View

POSITIONS = "images.positional_embedding"
MAX_LOG_SCALE = math.log(100.0)
GATHER: dict[str, parallel.GatherGradient] = {"full": "full", "local": "local"}


@dataclass
@configured("model/alip.yaml", "model.image")
class ALIPVisionConfig:
    """The image tower: a ViT, or CLIP's ResNet where ``depth`` is the blocks of four stages."""

    size: int = option(at_least=1)
    depth: Any = option()
    width: int = option(at_least=1)
    patch: int | None = option(at_least=1)
    head_width: int = option()
    mlp_ratio: float = option()


@dataclass
@configured("model/alip.yaml", "model.text")
class ALIPTextConfig:
    """The text tower, shared by raw texts and captions."""

    tokenizer: str = option()
    vocabulary_size: int = option(at_least=1)
    max_positions: int = option(at_least=1)
    width: int = option(at_least=1)
    heads: int = option(at_least=1)
    depth: int = option(at_least=1)


@dataclass
@configured("model/alip.yaml", "model.gates")
class GateConfig:
    """The gates; ``sample``, ``raw``, ``caption`` switch the three weights (Table 4)."""

    momentum: float = option(at_least=0, at_most=1)
    start: float = option()
    gamma_sample: float = option()
    gamma_pair: float = option()
    sample: bool = option()
    raw: bool = option()
    caption: bool = option()


@dataclass
@configured("model/alip.yaml", "model")
class ALIPConfig:
    """Options of `ALIP`; the sizes are ViT-B/32's."""

    pretrained: bool = option()
    init: str | None = option()
    lora: LoRAConfig = option()
    embed_size: int = option(at_least=1)
    quick_gelu: bool = option()
    temperature: float = option(at_least=0.01, at_most=1)
    crop_scale: list[float] = option(above=0, at_most=1)
    flip: bool = option()
    prompt: str = option()
    gather_grad: str = option(choices=("full", "local"))
    decay_all: bool = option()
    image: ALIPVisionConfig = option()
    text: ALIPTextConfig = option()
    gates: GateConfig = option()


# 3.2 The gates


class GateWeights(NamedTuple):
    """Weights of N samples from the gates."""

    sample: Tensor  # [N] W_s
    raw: Tensor  # [N] W_t
    caption: Tensor  # [N] W_c


class AdaptiveGates(nn.Module):
    """Weights of samples and pairs, from similarities and their running means (equations 2 to 5).

    ``means`` [3] are the running means of t.c, x.t and x.c.
    """

    means: Tensor
    gammas: Tensor
    switches: Tensor

    def __init__(self, config: GateConfig):
        super().__init__()
        self.config = config
        self.register_buffer("means", torch.full((3,), config.start))
        gammas = torch.tensor([config.gamma_sample, config.gamma_pair, config.gamma_pair])
        switches = torch.tensor([config.sample, config.raw, config.caption])
        self.register_buffer("gammas", gammas[:, None], persistent=False)
        self.register_buffer("switches", switches[:, None], persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> GateWeights:
        """Unit embeddings [N, D] float32 of all ranks -> weights.

        The means are updated with the batch first. A sample whose texts are more similar than
        average keeps weight 1 on both paths; the others are weighted by the language consistency
        gate and by the description consistency gate of each path.
        """
        left, right = torch.stack([t, x, x]), torch.stack([c, t, c])
        similarities = (left * right).sum(dim=-1)  # [3, N]
        self.means.lerp_(similarities.mean(dim=1), 1.0 - self.config.momentum)
        weights = ((similarities - self.means[:, None]) * self.gammas).exp()
        low = weights[:1] < 1.0
        return GateWeights(*torch.where(low & self.switches, weights, 1.0))


# The model


class ALIP(RetrievalModel):
    """Slots: ``raw`` scores images against raw texts, ``caption`` against synthetic captions."""

    Config = ALIPConfig
    slot_names = ("raw", "caption")
    term_names = ("raw", "caption")
    size_key = "image.size"
    config: ALIPConfig

    def __init__(
        self, config: ALIPConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        self._check()
        text = config.text
        self.images = image_tower(config)
        self.texts = CLIPTextTransformer(
            text.max_positions,
            facts.vocabulary,
            text.width,
            text.depth,
            text.heads,
            config.embed_size,
            config.quick_gelu,
        )
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self.gates = AdaptiveGates(config.gates)

    def _check(self) -> None:
        config = self.config
        if config.pretrained:
            raise ConfigError(
                "model.pretrained=true: ALIP trains its towers from random weights; pass "
                "model.pretrained=false, or start from OpenAI's CLIP with model.init=ViT-B-32.pt "
                "model.quick_gelu=true"
            )
        if (
            len(config.crop_scale) != 2
            or not 0.0 < config.crop_scale[0] <= config.crop_scale[1] <= 1.0
        ):
            raise ConfigError(
                f"model.crop_scale={config.crop_scale}: expected the least and the largest "
                "fraction of the image area, e.g. [0.7, 1.0]"
            )

    @classmethod
    def view_for(cls, config: ALIPConfig) -> View:
        """Pixels, a raw text and a synthetic caption per image; evaluation prepends a prompt.

        An epoch visits every pair.
        """
        text = config.text
        plain = TextView(cleaner="clip", max_length=text.max_positions)
        return View(
            kind="pixels",
            tokenizer=text.tokenizer,
            unit="pair",
            text=plain,
            text_eval=dataclasses.replace(plain, prompt=config.prompt),
            second_text=plain,
            pixels=PixelView(
                size=config.image.size,
                interpolation="bilinear",
                resize="random_crop",
                crop_scale=(config.crop_scale[0], config.crop_scale[1]),
                crop_ratio=(0.8, 1.25),
                flip=config.flip,
            ),
            pixels_eval=PixelView(size=config.image.size, resize="shortest"),
            vocabulary_size=text.vocabulary_size,
        )

    @classmethod
    def training_view(cls, config: ALIPConfig, weights: Mapping[str, float]) -> View:
        """Without the synthetic caption where no term has it and no gate compares it."""
        view, gates = cls.view_for(config), config.gates
        needed = weights.get("caption", 0.0) != 0.0 or gates.sample or gates.raw
        return view if needed else dataclasses.replace(view, second_text=None)

    @classmethod
    def slot_scores(cls, config: ALIPConfig, slot: str) -> SlotScores:
        """Cosines at the model's temperature."""
        return SlotScores(scale=True)

    def encode_images(self, batch: Batch) -> Encoded:
        """Unit embeddings [B, D] of the images."""
        assert batch.pixels is not None
        return Encoded(_unit(self.images(batch.pixels)))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Unit embeddings [B, D] of the captions."""
        assert batch.tokens is not None
        return Encoded(_unit(self.texts(batch.tokens)))

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """Terms ``raw`` and ``caption`` over the samples of all ranks."""
        return self.terms_of(self.states(batch), batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Unit embeddings [B, D] of images ``x``, raw texts ``t`` and synthetic captions ``c``.

        Without ``c`` if nothing needs the captions (`training_view`).
        """
        assert batch.pixels is not None and batch.tokens is not None
        if self.view.second_text is None:
            return {"x": _unit(self.images(batch.pixels)), "t": _unit(self.texts(batch.tokens))}
        if batch.second_tokens is None:
            raise DataError(
                "data.second_text: ALIP needs a raw text and a synthetic caption per image, but "
                "this dataset has one text; pass data.second_text=other_caption or "
                "data.second_text=FILE"
            )
        x = _unit(self.images(batch.pixels))
        # Two passes: each is padded to its own longest text, and captions are short.
        t, c = (_unit(self.texts(tokens)) for tokens in (batch.tokens, batch.second_tokens))
        return {"x": x, "t": t, "c": c}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The terms of ``x``, ``t`` and, where there are captions, ``c`` [B, D]."""
        assert batch.image_id is not None
        pairs = batch.positive_pairs if parallel.world_size() == 1 else batch.shared_pairs
        x, t, c = states["x"], states["t"], states.get("c")
        return self.criterion(x, t, c, batch.image_id, pairs, clock, draws)

    def criterion(
        self,
        x: Tensor,
        t: Tensor,
        c: Tensor | None,
        ids: Tensor,
        positive_pairs: int,
        clock: Clock,
        draws: Draws,
    ) -> Terms:
        """Both terms from this rank's unit embeddings [B, D] float32 and image ids [B].

        ``positive_pairs`` is the number of matches over all ranks (0: unknown). Without ``c`` the
        term ``raw`` alone, unweighted.
        """
        gradient = GATHER[self.config.gather_grad]
        with torch.autocast(ids.device.type, enabled=False):
            own = torch.stack([x, t] if c is None else [x, t, c], dim=1)
            x, *texts = parallel.all_gather(own, gradient).unbind(dim=1)
            ids = parallel.all_gather(ids)
            gates = None if c is None else self.gates(x, *texts)
            terms = Terms({}, self._report(gates))
            for name, text in zip(self.slot_names, texts, strict=False):
                if self.uses_term(name):
                    scores = pair_scores(x, text, ids, positive_pairs or None)
                    scores.scale = self.logit_scale.exp()
                    if gates is not None:
                        scores.weight = gates.sample * getattr(gates, name)
                    terms.losses[name] = self._loss(name, scores, clock, draws)
        return terms

    def _loss(self, slot: str, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        module = self.slots[slot]
        assert isinstance(module, ScoreLoss)
        return module(scores, clock, draws)

    def _report(self, gates: GateWeights | None) -> dict[str, Tensor]:
        scale = {"scale": self.logit_scale.detach().exp()}
        if gates is None:
            return scale
        means = zip(("raw_caption", "image_raw", "image_caption"), self.gates.means, strict=True)
        return {
            **scale,
            **{f"mean_{name}": value.clone() for name, value in means},
            **{f"weight_{name}": value.mean() for name, value in gates._asdict().items()},
        }

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """Losses of terms of weight 0, and the temperature if no loss reads it."""
        used = [name for name in self.slot_names if self.uses_term(name)]
        idle = {f"slots.{name}" for name in self.slot_names if name not in used}
        return frozenset(idle if self.reads_model_scale(used) else idle | {"logit_scale"})

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        """Clamp the temperature to [0.01, 1]."""
        self.logit_scale.clamp_(0.0, MAX_LOG_SCALE)

    def fit_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with position embeddings resized to this image size, as the authors do."""
        fitted = dict(state)
        if POSITIONS in fitted and isinstance(self.images, CLIPVisionTransformer):
            fitted[POSITIONS] = resize_positions(
                fitted[POSITIONS], self.images.grid, align_corners=True
            )
        return fitted

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Matrices decay; gains, biases and the temperature do not, unless ``decay_all``."""
        losses = parameter_names(self, [self.slots])
        decay: list[str] = []
        no_decay: list[str] = []
        for name, parameter in self.named_parameters():
            if name not in losses:
                decays = self.config.decay_all or parameter.ndim >= 2
                (decay if decays else no_decay).append(name)
        groups = (
            ParameterGroup("towers", tuple(decay), lr, weight_decay),
            ParameterGroup("undecayed", tuple(no_decay), lr, 0.0),
            ParameterGroup("loss", losses, lr, 0.0),
        )
        return [group for group in groups if group.names]


def image_tower(config: ALIPConfig) -> CLIPVisionTransformer | CLIPResNet:
    """The image tower that ``config.image`` describes. Raises ConfigError for impossible sizes."""
    image, size = config.image, config.image.size
    residual = not isinstance(image.depth, int)
    attention = image.width * 32 if residual else image.width
    if image.head_width < 1 or attention % image.head_width:
        raise ConfigError(
            f"model.image.head_width={image.head_width}: expected a divisor of {attention}, the "
            "width of the image tower's attention"
        )
    heads = attention // image.head_width
    if residual:
        return CLIPResNet(size, image.width, list(image.depth), heads, config.embed_size)
    if not image.patch:
        raise ConfigError("model.image.patch is missing: a ViT needs a patch size, e.g. 32")
    return CLIPVisionTransformer(
        size,
        image.patch,
        image.width,
        image.depth,
        heads,
        config.embed_size,
        image.mlp_ratio,
        config.quick_gelu,
    )


def _unit(embeddings: Tensor) -> Tensor:
    """Rows normalized to unit length, in float32."""
    return F.normalize(embeddings.float(), dim=-1)
