"""Another image size for a tower: its configuration, and position embeddings that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from itr.errors import ConfigError
from itr.nn.position import resize_positions
from itr.nn.tower.architecture import Architecture

# Position embeddings of image towers: of transformers, of open_clip
POSITIONS = ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding")
LEAST = 32  # pixels of a convolutional tower, which halves an image five times


def with_size(architecture: Architecture, size: int | None, key: str) -> Architecture:
    """``architecture`` for images of ``size`` x ``size`` pixels (None: its own size).

    Raises ConfigError, naming ``key``, for a size that the tower cannot take.
    """
    own = architecture.pixel_view().size
    if size is None or size == own:
        return architecture
    vision, name = _vision(architecture)
    patch = vision.get("patch_size")
    if "timm_model_name" in vision or isinstance(vision.get("layers"), list):
        raise ConfigError(
            f"{key}={size}: the image tower of this architecture reads {own} x {own} pixels alone; "
            f"expected {own}. Leave {key} out, or choose a tower of the other size"
        )
    if size < LEAST if patch is None else size % int(patch) or size < int(patch):
        what = f"at least {LEAST}" if patch is None else f"a multiple of {patch}, the patch"
        raise ConfigError(f"{key}={size}: expected {what} of this tower. Pass such a size")
    pixels = dict(architecture.pixels)
    if pixels.get("resize_to"):
        pixels["resize_to"] = round(pixels["resize_to"] * size / own)
    config = {**architecture.config, name: {**vision, "image_size": size}}
    return dataclasses.replace(architecture, config=config, pixels={**pixels, "size": size})


def _vision(architecture: Architecture) -> tuple[dict[str, Any], str]:
    name = "vision_cfg" if architecture.library == "open_clip" else "vision_config"
    return architecture.config[name], name


def fit_positions(state: Mapping[str, Tensor], tower: nn.Module, prefix: str) -> dict[str, Tensor]:
    """``state``, whose names begin with ``prefix``, with positions interpolated for ``tower``.

    Raises CheckpointError if they are no square of patches.
    """
    fitted, own = dict(state), tower.state_dict()
    for name in POSITIONS:
        given, expected = fitted.get(prefix + name), own.get(name)
        if given is None or expected is None or given.shape == expected.shape:
            continue
        if given.shape[1:] != expected.shape[1:]:
            continue  # of another width: not an image size
        patches = len(expected)
        has_class = round((patches - 1) ** 0.5) ** 2 == patches - 1
        rows = given if has_class else torch.cat([given[:1], given])
        resized = resize_positions(rows, round((patches - has_class) ** 0.5))
        fitted[prefix + name] = resized if has_class else resized[1:]
    return fitted
