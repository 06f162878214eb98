"""BLIP's retrieval model of transformers: its text encoder alone, and as it attends to images.

The same layers read a text alone (contrast) and with an image (matching), where each of them also
attends to all image tokens. transformers projects the image anew for every pair; here its keys and
values are kept, as re-ranking scores an image with many captions.

B texts, P pairs, I images, L token ids, N image tokens, H heads, D width of the texts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.blip.modeling_blip_text import BlipTextLayer

from itr.nn.tower import transformers_tower
from itr.nn.tower.architecture import Architecture
from itr.nn.tower.tower_names import find_tower

RETRIEVAL = {"blip": "BlipForImageTextRetrieval"}
ADDED = 2  # ids behind BERT's vocabulary: [DEC], [ENC]


class KeysValues(NamedTuple):
    """Projected image tokens of one layer: [I, H, N, D / H] each."""

    keys: Tensor
    values: Tensor


def build_blip(architecture: Architecture, learned_vocabulary: int | None) -> nn.Module:
    """The model with random weights, in float32.

    ``learned_vocabulary``: ids of a tokenizer learned from captions; None: BERT's.
    """
    config = copy.deepcopy(architecture.config)
    if learned_vocabulary is not None:
        config["text_config"]["vocab_size"] = learned_vocabulary + ADDED
    return _with_own_layers(transformers_tower.build(config, RETRIEVAL))


def load_blip(name: str, config: Mapping[str, Any], key: str) -> nn.Module:
    """The model ``name`` with its trained weights. Raises ConfigError, naming ``key``, for weights
    that are missing, damaged, or those of a captioner."""
    source = find_tower(name, key).source
    return _with_own_layers(transformers_tower.load(source, config, RETRIEVAL, key))


def _with_own_layers(tower: nn.Module) -> nn.Module:
    """``tower``, whose text layers are called as `text_states` does. Its weights are the same."""
    for layer in tower.get_submodule("text_encoder.encoder.layer"):  # type: ignore[attr-defined]
        layer.__class__ = TextLayer
    return tower


def keys_values(encoder: nn.Module, images: Tensor) -> list[KeysValues]:
    """Image tokens [I, N, Dv] as every layer of the text ``encoder`` attends to them."""
    projected = []
    for layer in encoder.get_submodule("encoder.layer"):  # type: ignore[attr-defined]
        attention = layer.crossattention.self
        heads = attention.num_attention_heads
        projected.append(
            KeysValues(_heads(attention.key(images), heads), _heads(attention.value(images), heads))
        )
    return projected


def text_states(
    encoder: nn.Module,
    embeddings: Tensor,
    mask: Tensor,
    images: list[KeysValues] | None = None,
    image_of: Tensor | None = None,
    first_only: bool = False,
) -> Tensor:
    """States [P, L, D] of texts, or with ``first_only`` [P, 1, D].

    Args:
        encoder: the text encoder.
        embeddings: of its ids, [P, L, D].
        mask: real ids, bool [P, L].
        images: what `keys_values` returns; None: the texts alone.
        image_of: rows [P / block] of ``images``; ``block`` consecutive texts share one.
        first_only: leave out of the last layer what its first state does not need.
    """
    states, allowed = embeddings, mask[:, None, None, :]
    layers = list(encoder.get_submodule("encoder.layer"))  # type: ignore[call-overload]
    for number, layer in enumerate(layers):
        last = first_only and number == len(layers) - 1
        keys, values = (None, None) if images is None else images[number]
        states = layer(states, allowed, keys, values, image_of, last)
    return states


class TextLayer(BlipTextLayer):
    """A layer of the text encoder that takes keys and values of images instead of their tokens."""

    def forward(
        self,
        states: Tensor,
        allowed: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        image_of: Tensor | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """[P, L, D] -> [P, L, D], or with ``first_only`` [P, 1, D]; see `text_states`."""
        asking = states[:, :1] if first_only else states
        own = self.attention.self
        heads = own.num_attention_heads
        queries, own_keys, own_values = (
            _heads(own.query(asking), heads),
            _heads(own.key(states), heads),
            _heads(own.value(states), heads),
        )
        context = _attend(own, queries, own_keys, own_values, allowed)
        states = self.attention.output(context, asking)
        if keys is not None:
            assert values is not None and image_of is not None
            states = _see(self.crossattention, states, KeysValues(keys, values), image_of)
        return self.feed_forward_chunk(states)


def _see(cross: Any, states: Tensor, images: KeysValues, image_of: Tensor) -> Tensor:
    """``states`` [P, L, D] after attending to their images. The texts of an image form one long row
    of queries, so that its keys and values are not copied."""
    pairs, length, width = states.shape
    rows = states.reshape(len(image_of), -1, width)
    queries = _heads(cross.self.query(rows), cross.self.num_attention_heads)
    context = _attend(cross.self, queries, images.keys[image_of], images.values[image_of], None)
    return cross.output(context.reshape(pairs, length, width), states)


def _attend(
    attention: Any, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None
) -> Tensor:
    """[P, H, L, D / H] and so on -> [P, L, D]."""
    dropout = attention.dropout.p if attention.training else 0.0
    context = F.scaled_dot_product_attention(queries, keys, values, allowed, dropout)
    return context.transpose(1, 2).flatten(2)


def _heads(rows: Tensor, heads: int) -> Tensor:
    """[P, L, D] -> [P, H, L, D / H]."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)


def first_id_replaced(tokens: Tensor, first: int) -> Tensor:
    """Ids [B, L] with ``first`` in the first place."""
    return torch.cat([torch.full_like(tokens[:, :1], first), tokens[:, 1:]], dim=1)
