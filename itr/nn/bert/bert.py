"""BERT as a text encoder, from the Hugging Face hub, a local directory, or random weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

from itr.errors import ConfigError
from itr.nn.bert.pretrained import load_pretrained
from itr.options import configured, option
from itr.view import Facts

SIZES = {  # options that define the architecture: ours -> `BertConfig`
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "init_std": "initializer_range",
}


@dataclass
@configured("model/text/bert.yaml", "model.text")
class TextConfig:
    """BERT. The sizes count only for random weights; pre-trained ones bring their own."""

    name: str = option()
    tokenizer: str | None = option()
    vocabulary_size: int = option(at_least=1)
    width: int = option(at_least=1)
    depth: int = option(at_least=1)
    heads: int = option(at_least=1)
    mlp_width: int = option(at_least=1)
    max_positions: int = option(at_least=1)
    token_types: int = option(at_least=1)
    activation: str = option()
    layer_norm_eps: float = option()
    init_std: float = option(at_least=0)
    dropout: float = option(at_least=0, below=1)


def _options(dropout: float) -> dict[str, Any]:
    return {
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "attn_implementation": "sdpa",
    }


def load_bert(
    name: str, dropout: float = 0.1, architecture: type[PreTrainedModel] = BertModel
) -> Any:
    """Load pretrained weights by Hugging Face name or local directory, in float32.

    ``architecture`` is a BERT class of the library. Raises ConfigError if ``name`` cannot be
    loaded, is not a BERT, or lacks weights.
    """
    return load_pretrained(
        name, "model.text.name", "bert", architecture, BertConfig, **_options(dropout)
    )


def random_bert(vocabulary: int, text: TextConfig) -> BertModel:
    """A BERT of the sizes of ``text`` with random weights. Raises ConfigError for invalid sizes."""
    try:
        return BertModel(
            BertConfig(vocab_size=vocabulary, **library_sizes(text), **_options(text.dropout))
        )
    except (ValueError, KeyError) as error:
        raise ConfigError(f"model.text: invalid sizes for a BERT: {error}") from error


def library_sizes(text: TextConfig) -> dict[str, Any]:
    """The sizes of ``text`` under the names of the library's configuration classes."""
    return {theirs: getattr(text, ours) for ours, theirs in SIZES.items()}


def sizes_of(bert: PreTrainedModel) -> dict[str, Any]:
    """The sizes of ``bert`` by our names (`SIZES`)."""
    return {ours: getattr(bert.config, theirs) for ours, theirs in SIZES.items()}


def build_bert(text: TextConfig, pretrained: bool, vocabulary: int) -> BertModel:
    """The BERT of ``text`` with pretrained or random weights.

    Raises ConfigError as `load_bert` and `random_bert`, and for pretrained weights with a tokenizer
    built from captions.
    """
    if not pretrained:
        return random_bert(vocabulary, text)
    if text.tokenizer == "wordpiece":
        raise ConfigError(
            "model.text.tokenizer=wordpiece: a vocabulary built from captions does not fit "
            "pretrained weights; pass model.pretrained=false, or leave model.text.tokenizer=null"
        )
    return load_bert(text.name, text.dropout)


def with_loaded_sizes(config: Any, facts: Facts, bert: PreTrainedModel) -> tuple[Any, Facts]:
    """``config`` (with ``pretrained`` and ``text``) and ``facts`` with the sizes of ``bert``.

    They rebuild the architecture without loading the pretrained weights. Raises ConfigError if the
    tokenizer has more ids than ``bert``.
    """
    known = bert.config.vocab_size
    if facts.vocabulary > known:
        raise ConfigError(
            f"model.text.tokenizer: it has {facts.vocabulary} ids, but the weights of "
            f"'{config.text.name}' only {known}; leave model.text.tokenizer=null"
        )
    text = dataclasses.replace(config.text, **sizes_of(bert))
    config = dataclasses.replace(config, pretrained=False, text=text)
    return config, dataclasses.replace(facts, vocabulary=known)


def bert_states(bert: BertModel, tokens: Tensor) -> Tensor:
    """Last hidden states [B, L, width] of ``tokens`` [B, L]; id 0 (padding) is masked as a key.

    Padding is still computed as queries. The library uses a four-dimensional mask as it is; for a
    two-dimensional one it would synchronize with the device to check whether it is all ones.
    """
    return bert(tokens, attention_mask=(tokens != 0)[:, None, None, :]).last_hidden_state
