"""CLIP: any dual encoder of transformers and open_clip, zero-shot or fine-tuned.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML
2021), and its successors: SigLIP, MetaCLIP, Chinese CLIP, AltCLIP, ALIGN, ... Two towers embed
images and texts; a loss sees the cosines of a batch, over all ranks.

B samples of one rank, N of all ranks, D joint width, L token ids.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr import parallel
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
from itr.nn.lora import LoRAConfig
from itr.nn.tower.architecture import Architecture, read_architecture
from itr.nn.tower.dual_tower import adapter_of, build_tower, load_tower
from itr.nn.tower.tower_size import fit_positions, with_size
from itr.nn.tower.transformers_tower import DUAL_ENCODERS
from itr.options import configured, option
from itr.view import Facts, View

MAX_LOG_SCALE = math.log(100.0)
GATHER: dict[str, parallel.GatherGradient] = {"full": "full", "local": "local"}


@dataclass
@configured("model/clip.yaml", "model")
class CLIPModelConfig:
    """Options of `CLIP`."""

    tower: str | None = option()
    architecture: dict[str, Any] | None = option()
    pretrained: bool = option()
    init: str | None = option()
    lora: LoRAConfig = option()
    size: int | None = option(at_least=1)
    prompt: str = option()
    crop_scale: list[float] = option(above=0, at_most=1)
    flip: bool = option()
    gather_grad: str = option(choices=("full", "local"))


def architecture_of(config: CLIPModelConfig, resized: bool = True) -> Architecture:
    """The architecture in ``config``, else that of ``config.tower``.

    Unless ``resized`` is false it is one for images of ``config.size``.
    """
    if config.architecture is not None:
        architecture = Architecture.from_dict(config.architecture)
    else:
        architecture = read_architecture(config.tower, DUAL_ENCODERS)
    return with_size(architecture, config.size if resized else None, "model.size")


class CLIP(RetrievalModel):
    """Slot ``itc`` scores images against texts."""

    Config = CLIPModelConfig
    slot_names = ("itc",)
    term_names = ("itc",)
    size_key = "size"
    config: CLIPModelConfig

    def __init__(
        self,
        config: CLIPModelConfig,
        slots: nn.ModuleDict,
        weights: Mapping[str, float],
        facts: Facts,
    ):
        original, architecture = architecture_of(config, resized=False), architecture_of(config)
        stored = dataclasses.replace(config, architecture=architecture.to_dict())
        super().__init__(stored, slots, weights, facts)
        self.adapter = adapter_of(architecture)
        if not config.pretrained or architecture != original:
            self.tower = build_tower(architecture, facts.vocabulary)
        if config.pretrained:
            tower = load_tower(config.tower or "", original)
            if architecture == original:
                self.tower = tower
            else:
                self.tower.load_state_dict(fit_positions(tower.state_dict(), self.tower, ""))

    @classmethod
    def view_for(cls, config: CLIPModelConfig) -> View:
        """Pixels and texts as the tower's library prepares them.

        Training crops at random. An epoch visits every caption.
        """
        architecture = architecture_of(config)
        text, pixels = architecture.text_view(), architecture.pixel_view()
        low, high = _crop_scale(config)
        return View(
            kind="pixels",
            tokenizer=architecture.tokenizer,
            whole_tokenizer=architecture.whole_tokenizer,
            unit="caption",
            text=text,
            text_eval=dataclasses.replace(text, prompt=config.prompt),
            pixels=dataclasses.replace(
                pixels,
                resize="random_crop",
                resize_to=None,
                crop_scale=(low, high),
                flip=config.flip,
            ),
            pixels_eval=pixels,
            padding_is_arithmetic=text.pad_to is not None,
            vocabulary_size=architecture.vocabulary_size(),
        )

    @classmethod
    def slot_scores(cls, config: CLIPModelConfig, slot: str) -> SlotScores:
        """Cosines at the tower's temperature, and with its bias."""
        return SlotScores(scale=True, bias=architecture_of(config).has_bias)

    def encode_images(self, batch: Batch) -> Encoded:
        """Unit embeddings [B, D] of the images."""
        assert batch.pixels is not None
        return Encoded(_unit(self.adapter.images(self.tower, batch.pixels)))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Unit embeddings [B, D] of the captions."""
        assert batch.tokens is not None
        padded = batch.min_token_length < batch.tokens.shape[1]  # known on the host
        mask = batch.token_mask if padded else None
        return Encoded(_unit(self.adapter.texts(self.tower, batch.tokens, mask)))

    def forward(self, batch: Batch, clock: Clock, draws: Draws) -> Terms:
        """The term ``itc`` over the samples of all ranks."""
        return self.terms_of(self.states(batch), batch, clock, draws)

    def states(self, batch: Batch) -> dict[str, Tensor]:
        """Unit embeddings [B, D] of images ``x`` and texts ``t``."""
        return {"x": self.encode_images(batch).pooled, "t": self.encode_texts(batch).pooled}

    def terms_of(
        self, states: Mapping[str, Tensor], batch: Batch, clock: Clock, draws: Draws
    ) -> Terms:
        """The term ``itc`` of ``x`` and ``t`` [B, D]."""
        assert batch.image_id is not None
        pairs = batch.positive_pairs if parallel.world_size() == 1 else batch.shared_pairs
        gradient = GATHER[self.config.gather_grad]
        with torch.autocast(batch.image_id.device.type, enabled=False):
            own = torch.stack([states["x"], states["t"]], dim=1)
            x, t = parallel.all_gather(own, gradient).unbind(dim=1)
            ids = parallel.all_gather(batch.image_id)
            scores = pair_scores(x, t, ids, pairs or None)
            scores.scale = self.adapter.scale(self.tower)
            scores.bias = self.adapter.bias(self.tower)
            terms = Terms({"itc": self._loss(scores, clock, draws)})
            terms.report["scale"] = scores.scale.detach().clone()
        return terms

    def _loss(self, scores: Scores, clock: Clock, draws: Draws) -> Tensor:
        module = self.slots["itc"]
        assert isinstance(module, ScoreLoss)
        return module(scores, clock, draws)

    def sleeping(self, clock: Clock) -> frozenset[str]:
        """What no embedding depends on; scales and biases that the loss does not read."""
        idle = {f"tower.{name}" for name in self.adapter.unused(self.tower)}
        scale = f"tower.{self.adapter.scale_name()}"
        if self.adapter.bias(self.tower) is None:
            return frozenset(idle if self.reads_model_scale(["itc"]) else {*idle, scale})
        if "itc" in self.slots and self.slots["itc"].uses_bias:
            return frozenset({*idle, "slots.itc"})
        read = self.reads_model_scale(["itc"])
        return frozenset({*idle, "tower.logit_bias", *([] if read else [scale])})

    def towers(self) -> dict[str, tuple[str, ...]]:
        """The modules of either side, as its library calls them."""
        texts = {id(module) for module in self.adapter.text_modules(self.tower)}
        names = {name: id(module) for name, module in self.tower.named_modules()}
        image = next(name for name in ("vision_model", "visual") if name in names)
        beside = [n for n in ("positional_embedding", "text_projection") if n in self._own()]
        text = [*beside, *(name for name, own in names.items() if own in texts)]
        return {"image": (f"tower.{image}",), "text": tuple(f"tower.{name}" for name in text)}

    def _own(self) -> set[str]:
        """Parameters of the tower that are in none of its modules; open_clip has texts' there."""
        return {name for name, _ in self.tower.named_parameters(recurse=False)}

    def pretrained_modules(self) -> tuple[str, ...]:
        """The whole tower, with its projections."""
        return ("tower",)

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        """Keep the scale at most 100, as CLIP does; SigLIP's begins above."""
        if self.adapter.bias(self.tower) is not None:
            return
        name = self.adapter.scale_name()
        scale = self.tower.get_parameter(name)
        scale.clamp_(min=0.01) if name == "temperature" else scale.clamp_(0.0, MAX_LOG_SCALE)

    def init_fault(self, stored: Mapping[str, Any]) -> str:
        """Says which tower a checkpoint has, if it is of another architecture."""
        theirs, ours = stored.get("tower"), self.config.tower
        own = self.config.architecture or {}
        if theirs == ours or (stored.get("architecture") or {}).get("kind") == own.get("kind"):
            return ""
        return (
            f"a checkpoint of the tower {theirs}, not of model.tower={ours}; expected weights of "
            f"the same architecture. Pass model.tower={theirs}, or leave model.init out"
        )

    def fit_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with the image tower's position embeddings resized to this image size."""
        return fit_positions(state, self.tower, "tower.")

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Matrices decay; gains, biases and the scale do not."""
        losses = parameter_names(self, [self.slots])
        named = [(n, p) for n, p in self.named_parameters() if n not in losses]
        groups = (
            ParameterGroup("towers", tuple(n for n, p in named if p.ndim >= 2), lr, weight_decay),
            ParameterGroup("undecayed", tuple(n for n, p in named if p.ndim < 2), lr, 0.0),
            ParameterGroup("loss", losses, lr, 0.0),
        )
        return [group for group in groups if group.names]


def _crop_scale(config: CLIPModelConfig) -> tuple[float, float]:
    if len(config.crop_scale) != 2 or not config.crop_scale[0] <= config.crop_scale[1]:
        raise ConfigError(
            f"model.crop_scale={config.crop_scale}: expected the least and the largest fraction "
            "of the image area, e.g. [0.9, 1.0]"
        )
    return config.crop_scale[0], config.crop_scale[1]


def _unit(embeddings: Tensor) -> Tensor:
    """``embeddings`` [B, D] at length 1, in float32."""
    return F.normalize(embeddings.float(), dim=-1)
