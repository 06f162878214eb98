"""The vision transformer of ALBEF, from timm. B images, N patches, D width."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from itr.errors import ConfigError
from itr.nn.position import resize_positions

POSITIONS = "pos_embed"  # [1, 1 + N, D], the class token first


@dataclass
class ImageConfig:
    """The vision transformer. ``name`` counts only with pre-trained weights."""

    name: str = "deit_base_patch16_224.fb_in1k"  # a timm model, or DeiT's own file
    size: int = 384
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0


def random_vit(config: ImageConfig) -> VisionTransformer:
    """A pre-norm ViT with random weights for square images; no head, no dropout.

    Its ``forward_features`` gives all tokens [B, 1 + N, D] after the last norm, the class token
    first. Linear layers, positions and class token begin as N(0, 0.02). Raises ConfigError for
    sizes that do not divide one another.
    """
    size, patch = config.size, config.patch
    if size % patch:
        raise ConfigError(
            f"model.image: patches of {patch} pixels do not divide an image of {size}; type "
            f"model.image.size={max(1, size // patch) * patch}"
        )
    if config.width % config.heads:
        raise ConfigError(
            f"model.image: {config.heads} heads do not divide a width of {config.width}"
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
    nn.init.trunc_normal_(vit.cls_token, std=0.02)  # timm's own is 1e-6
    return vit


def load_vit_weights(vit: VisionTransformer, name: str) -> None:
    """Load pre-trained weights into ``vit``; a classifier is left out, positions are resized.

    ``name`` is a file (DeiT's ``.pth`` with its weights below ``model``) or a timm model. Raises
    ConfigError if it cannot be found or is of another size.
    """
    state = {k: v for k, v in _weights(name).items() if not k.startswith(("head.", "fc_norm."))}
    own = vit.state_dict()
    if POSITIONS in state:
        state[POSITIONS] = resize_positions(state[POSITIONS], vit.patch_embed.grid_size)
    wrong = sorted(k for k in own if k not in state or state[k].shape != own[k].shape)
    if wrong or set(state) - set(own):
        raise ConfigError(
            f"model.image.name: the weights of '{name}' are of another vision transformer (first "
            f"misfit: {(wrong or sorted(set(state) - set(own)))[0]}); expected patches of "
            f"{vit.patch_embed.patch_size[0]} pixels, width {vit.embed_dim}, {len(vit.blocks)} "
            "blocks: set model.image.{patch,width,depth} to theirs"
        )
    vit.load_state_dict(state)


def _weights(name: str) -> dict[str, Tensor]:
    try:
        if Path(name).expanduser().is_file():
            payload = torch.load(Path(name).expanduser(), map_location="cpu", weights_only=True)
            return payload.get("model", payload)
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the hub, the file and timm raise nearly anything
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConfigError(
            f"model.image.name: no weights could be loaded from '{name}' ({reason}); give a local "
            "file (.pth) or a timm name that can be reached, or type model.pretrained=false for "
            "random weights of the sizes in model.image"
        ) from error
