"""What all models of ALBEF share: towers, momentum copies, parameter groups, initial weights.

B pairs, N image tokens, L words, D text width, Dv image width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn
from transformers import BertForMaskedLM

from itr.batch import Batch
from itr.clock import Clock
from itr.errors import DataError
from itr.models.albef.config import ALBEFConfig, albef_view, check_options
from itr.models.base import Model, ParameterGroup
from itr.nn.bert.bert import load_bert, with_loaded_sizes
from itr.nn.bert.halves import fusion_half, load_bert_halves, text_half, text_states
from itr.nn.distillation import ramped_weight
from itr.nn.momentum import MomentumTwin, teacher_weights
from itr.nn.position import resize_positions
from itr.nn.vit import POSITIONS, load_vit_weights, random_vit
from itr.view import Facts, View


class ALBEFEncoders(Model):
    """Vision transformer, text half and fusion half of BERT, and their momentum copies."""

    Config = ALBEFConfig
    size_key = "image.size"
    config: ALBEFConfig
    twin: MomentumTwin | None  # None: no soft targets

    def __init__(
        self, config: ALBEFConfig, slots: nn.ModuleDict, weights: Mapping[str, float], facts: Facts
    ):
        super().__init__(config, slots, weights, facts)
        self.twin = None

    @classmethod
    def view_for(cls, config: ALBEFConfig) -> View:
        """Pixels and captions, see `albef_view`."""
        return albef_view(config)

    def build_encoders(self, paired: bool = False) -> BertForMaskedLM | None:
        """Make ``vision``, ``text`` and ``fusion`` (``paired``: for two images).

        With pre-trained weights, sizes become theirs, and the whole BERT is returned, from which a
        model loads what else it has.
        """
        config, whole = self.config, None
        check_options(config, self.facts)
        self.vision = random_vit(config.image)
        if config.pretrained:
            load_vit_weights(self.vision, config.image.name)
            whole = load_bert(config.text.name, config.text.dropout, BertForMaskedLM)
            config, self.facts = with_loaded_sizes(config, self.facts, whole.bert)
        self.config = replace(config, pretrained=False)
        self.view = self.view_for(self.config)
        self.text = text_half(config.text, self.facts.vocabulary)
        self.fusion = fusion_half(config.text, config.image.width, paired)
        if whole is not None:
            load_bert_halves(whole, self.text, self.fusion)
        return whole

    def build_twin(self, *names: str) -> None:
        """Make momentum copies of the submodules ``names``."""
        self.twin = MomentumTwin(
            {name: self.get_submodule(name) for name in names},
            self.config.momentum,
            training=not self.config.momentum_eval_mode,
        )

    def words_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] and their mask. Raises DataError if they exceed BERT's positions."""
        assert batch.tokens is not None and batch.token_mask is not None
        if batch.tokens.shape[1] > (most := self.config.text.max_positions):
            raise DataError(
                f"a caption has {batch.tokens.shape[1]} token ids, but BERT has {most} positions; "
                f"set model.train_length and model.eval_length to {most} or less"
            )
        return batch.tokens, batch.token_mask

    def towers(self) -> dict[str, tuple[str, ...]]:
        """The encoders of one modality; the fusion layers are neither."""
        return {"image": ("vision",), "text": ("text",)}

    def pretrained_towers(self) -> tuple[tuple[str, ...], ...]:
        """The image encoder, and BERT, whose upper half are the fusion layers."""
        return (("vision",), ("text", "fusion"))

    def before_step(self, clock: Clock) -> None:
        """Update the momentum copies."""
        if self.twin is not None:
            self.twin.update()

    def alpha(self, clock: Clock) -> float:
        """Weight of the momentum copies in the soft targets at ``clock`` (equation 6)."""
        return ramped_weight(self.config.distill_weight, self.config.distill_warmup, clock)

    # Parameters and initial weights

    def parameter_groups(self, lr: float, weight_decay: float) -> list[ParameterGroup]:
        """Vectors (biases, norms) and parameters of losses do not decay; all others do, embeddings
        and the temperature included."""
        of_losses = {id(parameter) for parameter in self.slots.parameters()}
        factor = self.config.temperature_lr_factor
        no_decay: list[str] = []
        decay: list[str] = []
        for name, parameter in self.named_parameters():
            if factor == 1.0 or name != "temperature":
                vector = parameter.ndim == 1 or id(parameter) in of_losses
                (no_decay if vector else decay).append(name)
        groups = [
            ParameterGroup("no_decay", tuple(no_decay), lr, 0.0),
            ParameterGroup("decay", tuple(decay), lr, weight_decay),
        ]
        if factor != 1.0 and hasattr(self, "temperature"):
            group = ParameterGroup("temperature", ("temperature",), lr * factor, weight_decay)
            groups.append(group)
        return groups

    def adopt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``state`` of a model of another task of ALBEF (`starts_from`), by this model's names."""
        return state

    def fit_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` of an ALBEF (see `starts_from`) for this task and image size.

        Position embeddings are resized. ``model.teacher_from`` decides about momentum weights.
        """
        fitted, grid = self.adopt(dict(state)), self.vision.patch_embed.grid_size
        for name in (f"vision.{POSITIONS}", f"twin.vision.{POSITIONS}"):
            if name in fitted:
                fitted[name] = resize_positions(fitted[name], grid)
        return teacher_weights(fitted, self.state_dict(), self.config.teacher_from)


def image_tokens(owner: nn.Module, pixels: Tensor) -> Tensor:
    """All tokens [B, N, Dv] of ``pixels`` [B, 3, H, W] from ``owner``: a model or its twin."""
    return owner.get_submodule("vision").forward_features(pixels)  # type: ignore[operator]


def fused_states(
    owner: nn.Module,
    pixels: Tensor,
    tokens: Tensor,
    mask: Tensor,
    first_only: bool = False,
    image_of: Tensor | None = None,
) -> Tensor:
    """Texts that have seen their images [B, L, D], or with ``first_only`` [B, 1, D].

    ``owner`` is a model or its twin. ``image_of`` [B] are rows of ``pixels`` [U, 3, H, W] (None:
    row b), each of which is encoded and projected once.
    """
    states = text_states(owner.get_submodule("text"), tokens, mask)
    fusion = owner.get_submodule("fusion")
    images = fusion.keys_values(image_tokens(owner, pixels))  # type: ignore[operator]
    return fusion(states, mask, images, image_of, first_only=first_only)


def with_pairs(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """``state`` whose fusion ``layers`` are twice as many, for two images.

    Each layer becomes a pair; only the first of a pair projects keys and values. Unchanged if it
    has that many already.
    """
    numbers = {
        int(name.split("fusion.layers.")[1].split(".")[0])
        for name in state
        if "fusion.layers." in name
    }
    if len(numbers) >= layers:
        return state
    paired: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, found, rest = name.partition("fusion.layers.")
        if not found:
            paired[name] = value
            continue
        number, _, part = rest.partition(".")
        for second in (0, 1):
            if not (second and part.startswith(("image.key.", "image.value."))):
                paired[f"{owner}{found}{2 * int(number) + second}.{part}"] = value
    return paired
