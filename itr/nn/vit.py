"""ALBEF's vision transformer, from timm. B images, N patches, D width."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from itr.errors import ConfigError
from itr.nn.position import resize_positions
from itr.options import configured, option
from itr.weights_file import load_weights_file

POSITIONS = "pos_embed"  # [1, 1 + N, D], the class token first


@dataclass
@configured("model/albef.yaml", "model.image")
class ImageConfig:
    """The vision transformer. ``name`` counts only with pre-trained weights."""

    name: str = option()
    size: int = option(at_least=1)
    patch: int = option(at_least=1)
    width: int = option(at_least=1)
    depth: int = option(at_least=1)
    heads: int = option(at_least=1)
    mlp_ratio: float = option(above=0)


def random_vit(config: ImageConfig) -> VisionTransformer:
    """A pre-norm ViT with random weights for square images, without head and dropout.

    ``forward_features`` returns all tokens [B, 1 + N, D] after the last norm, the class token
    first. Linear layers, positions and class token are initialized as N(0, 0.02). Raises
    ConfigError for sizes that do not divide one another.
    """
    size, patch = config.size, config.patch
    if size % patch:
        raise ConfigError(
            f"model.image.size={size}: patches of {patch} pixels do not divide an image of {size}; "
            f"set model.image.size={max(1, size // patch) * patch}"
        )
    if config.width % config.heads:
        raise ConfigError(
            f"model.image.heads={config.heads}: expected a divisor of model.image.width="
            f"{config.width}"
        )
    vit = VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=0,
        global_pool="",
    )
    assert vit.cls_token is not None
    nn.init.trunc_normal_(vit.cls_token, std=0.02)  # timm uses 1e-6
    return vit


def load_vit_weights(vit: VisionTransformer, name: str) -> None:
    """Load pretrained weights into ``vit``, without a classifier and with resized positions.

    ``name`` is a file (DeiT's ``.pth`` with its weights below ``model``) or a timm model. Raises
    ConfigError if it cannot be loaded or has other sizes.
    """
    state = {k: v for k, v in _weights(name).items() if not k.startswith(("head.", "fc_norm."))}
    own = vit.state_dict()
    if POSITIONS in state:
        state[POSITIONS] = resize_positions(state[POSITIONS], vit.patch_embed.grid_size)
    wrong = sorted(k for k in own if k not in state or state[k].shape != own[k].shape)
    if wrong or set(state) - set(own):
        raise ConfigError(
            f"model.image.name={name}: the weights do not fit the vision transformer (first "
            f"mismatch: {(wrong or sorted(set(state) - set(own)))[0]}); expected patches of "
            f"{vit.patch_embed.patch_size[0]} pixels, width {vit.embed_dim}, {len(vit.blocks)} "
            "blocks; set model.image.{patch,width,depth} to those of the weights"
        )
    vit.load_state_dict(state)


def _weights(name: str) -> dict[str, Tensor]:
    try:
        if Path(name).expanduser().is_file():
            return load_weights_file(Path(name).expanduser())
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # hub, file formats and timm raise many types
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConfigError(
            f"model.image.name={name}: no weights could be loaded ({reason}); pass a local file "
            "(.pth) or the name of a timm model, or model.pretrained=false for random weights of "
            "the sizes in model.image"
        ) from error
