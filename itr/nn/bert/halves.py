"""Builds BERT's two halves and loads them from the library's BERT.

P pairs, L words, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn
from transformers import BertForMaskedLM, BertModel

from itr.nn.bert.bert import random_bert
from itr.nn.bert.fusion import FusionBert, FusionTextConfig, MLMHead, PairedFusionBert


def text_half(text: FusionTextConfig, vocabulary: int) -> BertModel:
    """The lower layers with random weights. Raises ConfigError for invalid sizes."""
    bert = random_bert(vocabulary, replace(text, depth=text.fusion_layer))
    bert.pooler = None
    return bert


def fusion_half(text: FusionTextConfig, image_width: int, paired: bool = False) -> FusionBert:
    """The upper layers with random weights. Raises ConfigError for invalid sizes.

    ``paired``: two layers for each, the first of which looks at one image, the second at another.
    """
    layers = text.depth - text.fusion_layer
    return (PairedFusionBert if paired else FusionBert)(
        2 * layers if paired else layers,
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


def load_bert_halves(whole: BertForMaskedLM, text: BertModel, fusion: FusionBert) -> None:
    """Initialize both halves from a BERT; cross-attention keeps its initial weights.

    Where the layers of ``fusion`` are pairs, both of a pair begin as the same layer.
    """
    lower, upper = split_whole_bert(whole.bert.state_dict(), text.config.num_hidden_layers)
    text.load_state_dict(lower)
    if isinstance(fusion, PairedFusionBert):
        upper = {
            f"layers.{2 * int(number) + second}.{rest}": value
            for name, value in upper.items()
            for number, rest in [name.removeprefix("layers.").split(".", 1)]
            for second in (0, 1)
        }
    fusion.load_state_dict(upper, strict=False)


def load_mlm_head(whole: BertForMaskedLM, words: MLMHead) -> None:
    """Initialize the word head from a BERT."""
    head = whole.cls.predictions
    words.dense.load_state_dict(head.transform.dense.state_dict())
    words.norm.load_state_dict(head.transform.LayerNorm.state_dict())
    words.bias.data.copy_(head.bias.data)
