"""BERT's upper layers with cross-attention (ALBEF): to one image, to two, or to a question.

The lower, text half is the library's `BertModel` (`itr.nn.bert.halves`). The upper half is
implemented here, because the library cannot add cross-attention to the upper layers only, attend to
tokens of another width, or project the keys and values of an image once for many captions.

P pairs, U images, L words, N image tokens, D text width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.errors import ConfigError
from itr.nn.bert.bert import TextConfig
from itr.options import configured, option


@dataclass
@configured("model/albef.yaml", "model.text")
class FusionTextConfig(TextConfig):
    """BERT, whose layers from ``fusion_layer`` on also attend to the image."""

    fusion_layer: int = option()


KeysValues = tuple[Tensor, Tensor]  # [U, H, N, D / H] each


class BertAttention(nn.Module):
    """Multi-head attention with BERT's residual: LN(x + Drop(W BertAttention(x, source))).

    ``source`` is the width of what it attends to; None: another module's `keys_values` are used.
    """

    def __init__(self, width: int, source: int | None, heads: int, dropout: float, eps: float):
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"model.text.heads={heads}: expected a divisor of model.text.width={width}"
            )
        self.heads = heads
        self.query = nn.Linear(width, width)
        if source is not None:
            self.key = nn.Linear(source, width)
            self.value = nn.Linear(source, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Keys and values of ``source`` [U, N, source width]."""
        return self._split(self.key(source)), self._split(self.value(source))

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """[P, L, D] -> [P, L, D]; ``mask`` bool broadcasts to [P, H, L, N].

        If there are keys and values of P / m rows only, each is shared by m consecutive rows of
        ``x``; ``mask`` then broadcasts to [P / m, H, m L, N].
        """
        query, shared = self._split(self.query(x)), len(x) // len(keys_values[0])
        if shared > 1:  # their words are concatenated to one long query, without copying keys
            query = query.unflatten(0, (-1, shared)).transpose(1, 2).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(
            query,
            *keys_values,
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        if shared > 1:
            mixed = mixed.unflatten(2, (shared, -1)).transpose(1, 2).flatten(0, 1)
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.norm(x + self.dropout(self.out(mixed)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FusionLayer(nn.Module):
    """Self-attention, cross-attention to the image and feed-forward, each with a residual."""

    def __init__(
        self,
        width: int,
        image_width: int | None,
        heads: int,
        feedforward: int,
        dropout: float,
        eps: float,
    ):
        super().__init__()
        self.words = BertAttention(width, width, heads, dropout, eps)
        self.image = BertAttention(width, image_width, heads, dropout, eps)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        image: KeysValues,
        image_mask: Tensor | None = None,
        first_only: bool = False,
        words: KeysValues | None = None,
    ) -> Tensor:
        """[P, L, D] -> [P, L, D], or with ``first_only`` [P, 1, D] of the first word.

        ``words``: the keys and values of self-attention, if they are not those of ``x`` alone.
        """
        words = self.words.keys_values(x) if words is None else words
        if first_only:
            x = x[:, :1]
        x = self.words(x, words, mask)
        x = self.image(x, image, image_mask)
        hidden = F.gelu(self.expand(x))
        return self.norm(x + self.dropout(self.contract(hidden)))


class FusionBert(nn.Module):
    """The upper layers. Weights are initialized as N(0, ``std``), biases as 0."""

    def __init__(
        self,
        layers: int,
        width: int,
        image_width: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.1,
        eps: float = 1e-12,
        std: float = 0.02,
    ):
        super().__init__()
        sources = self._sources(layers, image_width)
        self.layers = nn.ModuleList(
            FusionLayer(width, source, heads, feedforward, dropout, eps) for source in sources
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def _sources(self, layers: int, width: int) -> list[int | None]:
        """The width of what the cross-attention of each layer projects; None: nothing."""
        return [width] * layers

    def keys_values(self, images: Tensor) -> list[KeysValues]:
        """Keys and values of ``images`` [U, N, image width] for each layer, once per image."""
        return [layer.image.keys_values(images) for layer in self._layers()]

    def forward(
        self,
        states: Tensor,
        mask: Tensor,
        images: list[KeysValues],
        image_of: Tensor | None = None,
        image_mask: Tensor | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """Fuse caption ``states`` [P, L, D] with images: [P, L, D], or [P, 1, D] with
        ``first_only`` (the last layer then computes only its first word).

        ``mask`` bool is [P, L], True for words, or broadcasts to [P, H, L, L]. ``images`` comes
        from `keys_values`; ``image_of`` [P] is the image row of each caption (None: row p), or
        [P / m] the row that m consecutive captions share. ``image_mask`` [P, N] bool masks image
        tokens.
        """
        mask = mask[:, None, None, :] if mask.dim() == 2 else mask
        if image_mask is not None:
            image_mask = image_mask[:, None, None, :]
        last = len(self.layers) - 1
        for number, (layer, pair) in enumerate(zip(self._layers(), images, strict=True)):
            if image_of is not None:
                pair = (pair[0].index_select(0, image_of), pair[1].index_select(0, image_of))
            states = layer(states, mask, pair, image_mask, first_only and number == last)
        return states

    def _layers(self) -> list[FusionLayer]:
        return [layer for layer in self.layers if isinstance(layer, FusionLayer)]


class PairedFusionBert(FusionBert):
    """Upper layers that look at two images: the layers of each pair at the first, then the second.

    A pair has one projection of keys and values, which its first layer holds. Source: ALBEF,
    fine-tuning on NLVR2.
    """

    def _sources(self, layers: int, width: int) -> list[int | None]:
        return [None if number % 2 else width for number in range(layers)]

    def keys_values(self, images: Tensor) -> list[KeysValues]:
        """Keys and values of ``images`` [U, N, image width] for each pair of layers."""
        return [layer.image.keys_values(images) for layer in self._layers()[::2]]


def pairs_of(images: list[KeysValues], first: Tensor, second: Tensor) -> list[KeysValues]:
    """What each layer of a `PairedFusionBert` attends to, for P pairs of images.

    ``images`` is its `keys_values` of U images; ``first`` and ``second`` [P] are their rows.
    """
    return [
        (keys.index_select(0, rows), values.index_select(0, rows))
        for keys, values in images
        for rows in (first, second)
    ]


class MLMHead(nn.Module):
    """BERT's masked language modeling head; its output matrix is the tied word embedding."""

    def __init__(self, width: int, vocabulary: int, eps: float = 1e-12, std: float = 0.02):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=std)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """[..., D] and the word embedding [V, D] -> logits [..., V]."""
        return F.linear(self.norm(F.gelu(self.dense(states))), embedding, self.bias)
