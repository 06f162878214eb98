"""BERT in two halves: a text encoder and a multimodal encoder with cross-attention (ALBEF).

The text half is the library's `BertModel`. The fusion half is implemented here, because the library
cannot add cross-attention to the upper layers only, attend to tokens of another width, or project
the keys and values of an image once for many captions.

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
from itr.options import configured, option


@dataclass
@configured("model/albef.yaml", "model.text")
class FusionTextConfig(TextConfig):
    """BERT, whose layers from ``fusion_layer`` on also attend to the image."""

    fusion_layer: int = option()


KeysValues = tuple[Tensor, Tensor]  # [U, H, N, D / H] each


class BertAttention(nn.Module):
    """Multi-head attention with BERT's residual: LN(x + Drop(W BertAttention(x, source)))."""

    def __init__(self, width: int, source: int, heads: int, dropout: float, eps: float):
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"model.text.heads={heads}: expected a divisor of model.text.width={width}"
            )
        self.heads = heads
        self.query = nn.Linear(width, width)
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
        ``x`` (``mask`` must then be None).
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
        """[P, L, D] -> [P, L, D], or with ``first_only`` [P, 1, D] of the first word."""
        words = self.words.keys_values(x)
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
        self.layers = nn.ModuleList(
            FusionLayer(width, image_width, heads, feedforward, dropout, eps) for _ in range(layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

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


# The halves


def text_half(text: FusionTextConfig, vocabulary: int) -> BertModel:
    """The lower layers with random weights. Raises ConfigError for invalid sizes."""
    bert = random_bert(vocabulary, replace(text, depth=text.fusion_layer))
    bert.pooler = None
    return bert


def fusion_half(text: FusionTextConfig, image_width: int) -> FusionBert:
    """The upper layers with random weights. Raises ConfigError for invalid sizes."""
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
    """Last hidden states [P, L, D] of ``tokens`` [P, L]; ``mask`` [P, L] bool masks keys.

    A four-dimensional mask is used as it is.
    """
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask
    return bert(tokens, attention_mask=mask).last_hidden_state


def mlm_logits(
    owner: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    images: list[KeysValues],
    positions: Tensor,
    rows: int | None = None,
) -> Tensor:
    """MLM logits [C, V] of ``owner`` at ``positions`` [C] of the flattened ``tokens`` [B, L].

    The encoders process ``rows`` captions at a time.
    """
    text, fusion = owner.get_submodule("text"), owner.get_submodule("fusion")

    def fused(tokens: Tensor, mask: Tensor, image_of: Tensor) -> Tensor:
        rows_of = None if len(image_of) == len(all_rows) else image_of
        return fusion(text_states(text, tokens, mask), mask, images, rows_of)

    all_rows = torch.arange(len(tokens), device=tokens.device)
    states = in_chunks(fused, rows, tokens, mask, all_rows)
    embedding = text.get_submodule("embeddings.word_embeddings").weight
    return owner.get_submodule("words")(states.flatten(0, 1)[positions], embedding)


# The library's names in a BERT layer -> ours.
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
    """Split the weights of a BERT (``embeddings.*``, ``encoder.layer.I.*``) into those of the text
    half and of `FusionBert`; others (a pooler) are dropped."""
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
    """Initialize both halves from a BERT; cross-attention keeps its initial weights."""
    lower, upper = split_whole_bert(whole.bert.state_dict(), text.config.num_hidden_layers)
    text.load_state_dict(lower)
    fusion.load_state_dict(upper, strict=False)
    if words is not None:
        head = whole.cls.predictions
        words.dense.load_state_dict(head.transform.dense.state_dict())
        words.norm.load_state_dict(head.transform.LayerNorm.state_dict())
        words.bias.data.copy_(head.bias.data)
