"""CLIP's vision Transformer without its last block, as Multi-SEA uses it.

The weights come from OpenAI's files, from the Hugging Face hub, or are random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from itr.errors import CheckpointError, ConfigError
from itr.nn.bert.pretrained import load_pretrained
from itr.nn.clip.jit_archive import is_jit_archive, read_jit_archive
from itr.nn.clip.towers import CLIPVisionTransformer
from itr.nn.position import resize_positions
from itr.options import configured, option
from itr.weights_file import load_weights_file, require_weights

HUGGING_FACE = (  # names of transformers -> OpenAI's
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm.", "ln_pre."),
    ("post_layernorm.", "ln_post."),
    ("encoder.layers.", "transformer.resblocks."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


@dataclass
@configured("model/multisea.yaml", "model.image")
class CLIPConfig:
    """CLIP's vision Transformer. The sizes except ``size`` count only for random weights."""

    name: str = option()
    size: int = option(at_least=1)
    patch: int = option(at_least=1)
    width: int = option(at_least=1)
    depth: int = option()
    head_width: int = option(at_least=1)
    trained_layers: int | None = option()


def build_clip_vision(image: CLIPConfig, pretrained: bool) -> CLIPVisionTransformer:
    """The image tower of ``image`` without projection; pretrained weights determine its sizes.

    Raises ConfigError for invalid sizes and names that cannot be loaded, CheckpointError for a file
    that is not a CLIP.
    """
    if not pretrained:
        return _tower(image)
    weights = clip_vision_weights(image.name)
    tower = _tower(sizes_in(weights, image))
    load_clip_vision(tower, weights)
    return tower


def image_with_loaded_sizes(image: CLIPConfig, tower: CLIPVisionTransformer) -> CLIPConfig:
    """``image`` with the sizes of ``tower``."""
    return dataclasses.replace(
        image,
        patch=tower.conv1.kernel_size[0],
        width=tower.conv1.out_channels,
        depth=len(tower.transformer.resblocks),
    )


def _tower(image: CLIPConfig) -> CLIPVisionTransformer:
    trained = image.depth if image.trained_layers is None else image.trained_layers
    if image.depth < 1 or not 0 <= trained <= image.depth:
        raise ConfigError(
            f"model.image: depth={image.depth}, trained_layers={image.trained_layers}; expected "
            "at least one layer, and from 0 to all of them trained (null: everything)"
        )
    if image.width % image.head_width:
        raise ConfigError(
            f"model.image.head_width={image.head_width}: expected a divisor of model.image.width="
            f"{image.width}"
        )
    return CLIPVisionTransformer(
        image_size=image.size,
        patch_size=image.patch,
        width=image.width,
        layers=image.depth,
        heads=image.width // image.head_width,
        embed_dim=None,
        quick_gelu=True,
    )


def sizes_in(weights: Mapping[str, Tensor], image: CLIPConfig) -> CLIPConfig:
    """``image`` with the sizes of OpenAI's ``weights``, not counting the last block."""
    width, _, patch, _ = weights["conv1.weight"].shape
    blocks = {name.split(".")[2] for name in weights if name.startswith("transformer.resblocks.")}
    return dataclasses.replace(image, patch=patch, width=width, depth=len(blocks) - 1)


def load_clip_vision(tower: CLIPVisionTransformer, weights: Mapping[str, Tensor]) -> None:
    """Load OpenAI's ``weights`` (any float type) into ``tower``, without last block and projection.

    Position embeddings are resized to the tower's grid.
    """
    last = f"transformer.resblocks.{len(tower.transformer.resblocks)}."
    state = {
        name: value.float()
        for name, value in weights.items()
        if name != "proj" and not name.startswith(last)
    }
    state["positional_embedding"] = resize_positions(state["positional_embedding"], tower.grid)
    tower.load_state_dict(state)


def clip_vision_weights(name: str) -> dict[str, Tensor]:
    """Weights of a vision Transformer by OpenAI's names (without ``visual.``), from a file or the
    Hugging Face hub. Raises ConfigError or CheckpointError."""
    path = Path(name)
    weights = _from_file(path) if path.is_file() else _from_hub(name)
    if "conv1.weight" not in weights or "class_embedding" not in weights:
        raise CheckpointError(
            f"model.image.name={name}: the file holds no CLIP vision Transformer "
            "(visual.conv1.weight or visual.class_embedding is missing); pass OpenAI's ViT-B-16.pt "
            "or another of their ViTs"
        )
    return weights


def _from_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        state = load_weights_file(path)
    else:
        require_weights(path)
        state = read_jit_archive(path) if is_jit_archive(path) else load_weights_file(path)
    prefix = "visual."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _from_hub(name: str) -> dict[str, Tensor]:
    model = load_pretrained(
        name, "model.image.name", "clip_vision_model", CLIPVisionModel, CLIPVisionConfig
    )
    return from_hugging_face(model.state_dict())


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' CLIP vision weights to OpenAI's names and merge q, k and v."""
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = name.removeprefix("vision_model.")
        for old, new in HUGGING_FACE:
            ours = ours.replace(old, new)
        if ".self_attn.q_proj." in ours:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            kind = ours.rsplit(".", 1)[1]
            ours, value = ours.split(".self_attn.")[0] + f".attn.in_proj_{kind}", torch.cat(parts)
        if ".self_attn." not in ours and "position_ids" not in ours:
            weights[ours] = value
    return weights
