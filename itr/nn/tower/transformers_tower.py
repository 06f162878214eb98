"""Dual encoders of transformers: their configuration, weights, and what they compute.

B samples, L token ids, D joint width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from itr.errors import ConfigError, nearest
from itr.nn.bert.pretrained import load_pretrained
from itr.nn.tower.tower_names import variable_resolution

# Model types with `get_image_features` and `get_text_features`, and their classes
DUAL_ENCODERS = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",  # also of SigLIP 2 with a fixed resolution
    "metaclip_2": "MetaClip2Model",
    "chinese_clip": "ChineseCLIPModel",
    "altclip": "AltCLIPModel",
    "align": "AlignModel",
}
CAUSAL = ("clip", "metaclip_2")  # a token attends to itself and those before it
FIXED_LENGTH = ("siglip",)  # texts are padded to all positions: the last one is the embedding
WITH_BIAS = ("siglip",)  # `logit_bias`, of the sigmoid loss
OFFSET_POSITIONS = ("altclip",)  # RoBERTa's positions begin after the padding id
VARIABLE = ("siglip2",)  # NaFlex: patches of any number and shape
# Weights that no embedding depends on, by model type
UNUSED = {
    "altclip": ("text_model.roberta.pooler", "text_model.pooler"),
    "align": ("text_model.pooler",),
}
NOT_KEPT = (  # of a configuration
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "id2label", "label2id",
    "architectures", "auto_map",
)  # fmt: skip


def read_config(source: str, kinds: tuple[str, ...], key: str) -> dict[str, Any]:
    """The configuration of the tower in ``source``, a directory or a name on the hub.

    Raises ConfigError unless its model type is one of ``kinds``.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the library raises nearly anything for damaged files
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{key}={source}: its config.json cannot be used ({reason}); expected the "
            "configuration of a tower. Copy or download the whole repository again, or put hf-hub: "
            "or local-dir: before the name of a tower of open_clip"
        ) from error
    kind = config.model_type
    if kind in VARIABLE:
        raise ConfigError(variable_resolution(source, key))
    if kind not in kinds:
        raise ConfigError(
            f"{key}={source}: a '{kind}'{nearest(kind, kinds)}; expected one of "
            f"{', '.join(kinds)}. Pass such a tower{', or model=blip' if kind == 'blip' else ''}"
        )
    return _plain(config.to_dict())


def _plain(value: Any) -> Any:
    """``value`` with the keys of JSON, less what says nothing about the architecture."""
    if isinstance(value, Mapping):
        kept = {str(k): v for k, v in value.items() if k not in NOT_KEPT}
        # An implementation of attention may be a name on the hub.
        return {k: _plain(v) for k, v in kept.items() if "attn_implementation" not in k}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, torch.dtype) else value


def positions(config: Mapping[str, Any]) -> int:
    """Ids of the longest text that the tower of ``config`` reads."""
    text = config.get("text_config") or config
    count = int(text["max_position_embeddings"])
    if config["model_type"] in OFFSET_POSITIONS:
        count -= int(text.get("pad_token_id") or 0) + 1
    return count


def build(config: Mapping[str, Any], kinds: Mapping[str, str]) -> nn.Module:
    """A tower of ``config`` with random weights, in float32."""
    import transformers

    architecture = getattr(transformers, kinds[config["model_type"]])
    return architecture(architecture.config_class.from_dict(_plain(config)))


def load(source: str, config: Mapping[str, Any], kinds: Mapping[str, str], key: str) -> nn.Module:
    """The tower in ``source`` with its weights, in float32.

    Raises ConfigError for weights that are missing or damaged.
    """
    import transformers

    kind = config["model_type"]
    architecture = getattr(transformers, kinds[kind])
    module: nn.Module = load_pretrained(
        source, key, kind, architecture, architecture.config_class, heads=()
    )
    return module


class TransformersAdapter:
    """What a dual encoder of transformers computes."""

    def __init__(self, kind: str, has_mask: bool):
        self.kind, self.has_mask = kind, has_mask

    def images(self, tower: Any, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D], not normalized."""
        return tower.get_image_features(pixel_values=pixels).pooler_output

    def texts(self, tower: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Ids [B, L] and their mask (None: no padding) -> [B, D], not normalized."""
        given = None
        if self.has_mask and mask is not None:
            given = self._attention_mask(tower.text_model, mask)
        return tower.get_text_features(input_ids=tokens, attention_mask=given).pooler_output

    def _attention_mask(self, text_model: Any, mask: Tensor) -> Tensor:
        """[B, L] -> [B, 1, L, L], what the library makes of it.

        The library would ask the device first whether there is any padding.
        """
        length = mask.shape[1]
        allowed = mask[:, None, None, :].expand(-1, 1, length, -1)
        if self.kind in CAUSAL:
            allowed = allowed.tril()
        if text_model.config._attn_implementation == "sdpa":
            return allowed
        weights: Tensor = next(text_model.parameters())
        added = torch.zeros(allowed.shape, dtype=weights.dtype, device=mask.device)
        return added.masked_fill(~allowed, torch.finfo(weights.dtype).min)

    def scale(self, tower: Any) -> Tensor:
        """The factor on the cosines, a scalar."""
        if self.kind == "align":
            return 1 / tower.temperature.reshape(())
        return tower.logit_scale.reshape(()).exp()

    def scale_name(self) -> str:
        """The parameter that holds the scale."""
        return "temperature" if self.kind == "align" else "logit_scale"

    def bias(self, tower: Any) -> Tensor | None:
        """What a sigmoid loss adds to the scaled cosines, a scalar; None: it was never trained."""
        bias = getattr(tower, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    def unused(self, tower: nn.Module) -> tuple[str, ...]:
        """Modules and parameters of ``tower`` that no embedding depends on."""
        return UNUSED.get(self.kind, ())

    def text_modules(self, tower: nn.Module) -> list[nn.Module]:
        """The modules of the text tower."""
        names = ("text_model", "text_projection")
        return [module for name in names if (module := getattr(tower, name, None)) is not None]
