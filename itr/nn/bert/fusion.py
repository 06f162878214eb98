"""BERT cut in two: lower layers read text, upper layers also look at image tokens (ALBEF).

The text half is the library's `BertModel`. The fusion half is written here: the library cannot give
cross-attention to upper layers only, attend to tokens of another width, or project the keys and
values of an image once for many captions.

P pairs, U images, L words, N image tokens, D text width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForMaskedLM, BertModel

from itr.errors import ConfigError
from itr.nn.bert.bert import TextConfig, random_bert
from itr.nn.chunked import in_chunks


@dataclass
class FusionTextConfig(TextConfig):
    """BERT and where it is cut: layers below ``fusion_layer`` read text, the others also images."""

    fusion_layer: int = 6


KeysValues = tuple[Tensor, Tensor]  # [U, H, N, D / H] each


class BertAttention(nn.Module):
    """Multi-head attention with BERT's residual: LN(x + Drop(W BertAttention(x, source)))."""

    def __init__(self, width: int, source: int, heads: int, dropout: float, eps: float):
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.text: {heads} heads do not divide a width of {width}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source, width)
        self.value = nn.Linear(source, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Keys and values of ``source`` [U, N, its width]."""
        return self._split(self.key(source)), self._split(self.value(source))

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """[P, L, D] with keys and values of P rows; ``mask`` bool broadcasts to [P, H, L, N].

        Keys and values of P / m rows: each is read by m rows of ``x`` (``mask`` is then None).
        """
        query, shared = self._split(self.query(x)), len(x) // len(keys_values[0])
        if shared > 1:  # their words become one long query, and nothing is copied
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
    """Self-attention of the words, attention to the image, feed-forward; each with a residual."""

    def __init__(
        self, width: int, image_width: int, heads: int, feedforward: int, dropout: float, eps: float
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
        mask: Tensor,
        image: KeysValues,
        image_mask: Tensor | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """[P, L, D] -> [P, L, D], or [P, 1, D] of the first word with ``first_only``."""
        words = self.words.keys_values(x)
        if first_only:
            x = x[:, :1]
        x = self.words(x, words, mask)
        x = self.image(x, image, image_mask)
        hidden = F.gelu(self.expand(x))
        return self.norm(x + self.dropout(self.contract(hidden)))


class FusionBert(nn.Module):
    """The upper layers. Weights begin as N(0, ``std``), biases as 0."""

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
        self.layers = nn.ModuleList(
            FusionLayer(width, image_width, heads, feedforward, dropout, eps) for _ in range(layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def keys_values(self, images: Tensor) -> list[KeysValues]:
        """What each layer reads of ``images`` [U, N, their width]: projected once an image."""
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
        """States [P, L, D] of captions, each fused with an image; [P, 1, D] with ``first_only``
        (then the last layer computes only what its first word needs).

        ``mask`` bool: [P, L], True at words, or broadcastable to [P, H, L, L]. ``images`` comes
        from `keys_values`; ``image_of`` [P] says which of its rows each caption is paired with
        (None: row p), or [P / m] which row every m captions share. ``image_mask`` [P, N] bool
        hides image tokens.
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


class MLMHead(nn.Module):
    """BERT's masked-word head; its last matrix is the word embedding, which the caller gives."""

    def __init__(self, width: int, vocabulary: int, eps: float = 1e-12, std: float = 0.02):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=std)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """[..., D] with the word embedding [V, D] -> logits [..., V]."""
        return F.linear(self.norm(F.gelu(self.dense(states))), embedding, self.bias)


# The halves


def text_half(text: FusionTextConfig, vocabulary: int) -> BertModel:
    """The lower layers with random weights. Raises ConfigError for sizes that do not fit."""
    bert = random_bert(vocabulary, replace(text, depth=text.fusion_layer))
    bert.pooler = None
    return bert


def fusion_half(text: FusionTextConfig, image_width: int) -> FusionBert:
    """The upper layers with random weights. Raises ConfigError for sizes that do not fit."""
    return FusionBert(
        text.depth - text.fusion_layer,
        text.width,
        image_width,
        text.heads,
        text.mlp_width,
        text.dropout,
        text.layer_norm_eps,
        text.init_std,
    )


def text_states(bert: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states [P, L, D] of ``tokens`` [P, L]; where ``mask`` [P, L] is False a position
    is hidden from the others (and still computed). A four-dimensional mask is used as it is."""
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask
    return bert(tokens, attention_mask=mask).last_hidden_state


def mlm_logits(
    owner: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    images: list[KeysValues],
    places: Tensor,
    rows: int | None = None,
) -> Tensor:
    """[C, V]: what ``owner`` guesses at ``places`` [C] of the flattened ``tokens`` [B, L], with
    ``rows`` captions at a time below the head."""
    text, fusion = owner.get_submodule("text"), owner.get_submodule("fusion")

    def fused(tokens: Tensor, mask: Tensor, image_of: Tensor) -> Tensor:
        own = None if len(image_of) == len(every) else image_of
        return fusion(text_states(text, tokens, mask), mask, images, own)

    every = torch.arange(len(tokens), device=tokens.device)
    states = in_chunks(fused, rows, tokens, mask, every)
    embedding = text.get_submodule("embeddings.word_embeddings").weight
    return owner.get_submodule("words")(states.flatten(0, 1)[places], embedding)


# A whole BERT's names of a layer -> ours, for both importing one and starting from one.
LAYER_NAMES = {
    "attention.self.query.": "words.query.",
    "attention.self.key.": "words.key.",
    "attention.self.value.": "words.value.",
    "attention.output.dense.": "words.out.",
    "attention.output.LayerNorm.": "words.norm.",
    "crossattention.self.query.": "image.query.",
    "crossattention.self.key.": "image.key.",
    "crossattention.self.value.": "image.value.",
    "crossattention.output.dense.": "image.out.",
    "crossattention.output.LayerNorm.": "image.norm.",
    "intermediate.dense.": "expand.",
    "output.dense.": "contract.",
    "output.LayerNorm.": "norm.",
}


def split_whole_bert(
    state: Mapping[str, Tensor], text_layers: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a whole BERT (``embeddings.*``, ``encoder.layer.I.*``) as those of the text
    half and of `FusionBert`; everything else (a pooler) is left out."""
    text, fusion = {}, {}
    for name, value in state.items():
        if name.startswith("embeddings."):
            text[name] = value
            continue
        if not name.startswith("encoder.layer."):
            continue
        number, _, rest = name.removeprefix("encoder.layer.").partition(".")
        if int(number) < text_layers:
            text[name] = value
            continue
        ours = next(rest.replace(a, b, 1) for a, b in LAYER_NAMES.items() if rest.startswith(a))
        fusion[f"layers.{int(number) - text_layers}.{ours}"] = value
    return text, fusion


def load_bert_halves(
    whole: BertForMaskedLM, text: BertModel, fusion: FusionBert, words: MLMHead | None
) -> None:
    """Start from a whole BERT: fusion layers get its upper ones; what looks at images stays."""
    lower, upper = split_whole_bert(whole.bert.state_dict(), text.config.num_hidden_layers)
    text.load_state_dict(lower)
    fusion.load_state_dict(upper, strict=False)
    if words is not None:
        head = whole.cls.predictions
        words.dense.load_state_dict(head.transform.dense.state_dict())
        words.norm.load_state_dict(head.transform.LayerNorm.state_dict())
        words.bias.data.copy_(head.bias.data)
