"""Dual encoders of both libraries behind one interface: built, loaded and asked for embeddings."""

from __future__ import annotations

import copy
from typing import Protocol

from torch import Tensor, nn

from itr.data.text.known_tokenizers import LEARNED
from itr.nn.tower import open_clip_tower, transformers_tower
from itr.nn.tower.architecture import Architecture
from itr.nn.tower.tower_names import KEY, find_tower
from itr.nn.tower.transformers_tower import DUAL_ENCODERS


class TowerAdapter(Protocol):
    """What a library's dual encoder computes. B samples, L token ids, D joint width."""

    def images(self, tower: nn.Module, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D], not normalized."""

    def texts(self, tower: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Ids [B, L] and their mask (None: no padding) -> [B, D], not normalized."""

    def scale(self, tower: nn.Module) -> Tensor:
        """The factor on the cosines, a scalar."""

    def scale_name(self) -> str:
        """The parameter that holds the scale."""

    def bias(self, tower: nn.Module) -> Tensor | None:
        """What a sigmoid loss adds to the scaled cosines, a scalar; None: it was never trained."""

    def unused(self, tower: nn.Module) -> tuple[str, ...]:
        """Modules and parameters of ``tower`` that no embedding depends on."""

    def text_modules(self, tower: nn.Module) -> list[nn.Module]:
        """The modules of the text tower."""


def adapter_of(architecture: Architecture) -> TowerAdapter:
    """How the towers of ``architecture`` are called."""
    if architecture.library == "open_clip":
        return open_clip_tower.OpenCLIPAdapter()
    return transformers_tower.TransformersAdapter(architecture.kind, architecture.has_mask)


def build_tower(architecture: Architecture, vocabulary: int) -> nn.Module:
    """A tower with random weights, in float32.

    ``vocabulary`` is its number of ids if its tokenizer is learned from captions.
    """
    if architecture.library == "open_clip":
        return open_clip_tower.build(architecture.config, architecture.text_config)
    config = copy.deepcopy(architecture.config)
    if architecture.tokenizer in LEARNED:
        config["text_config"]["vocab_size"] = vocabulary
    return transformers_tower.build(config, DUAL_ENCODERS)


def load_tower(name: str, architecture: Architecture, key: str = KEY) -> nn.Module:
    """The tower ``name`` with its trained weights, in float32.

    Raises ConfigError, naming ``key``, for weights that are missing or damaged.
    """
    found = find_tower(name, key)
    if found.library == "open_clip":
        return open_clip_tower.load(found, architecture.config, key, name)
    return transformers_tower.load(found.source, architecture.config, DUAL_ENCODERS, key)
