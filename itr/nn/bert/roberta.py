"""RoBERTa as a text encoder, from the Hugging Face hub, a local directory, or random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import RobertaConfig, RobertaModel

from itr.errors import ConfigError
from itr.nn.bert.bert import TextConfig, library_sizes
from itr.nn.bert.pretrained import load_pretrained
from itr.options import configured, option


@dataclass
@configured("model/text/roberta.yaml", "model.text")
class RobertaTextConfig(TextConfig):
    """RoBERTa. The sizes count only for random weights; pre-trained ones bring their own.

    ``tokenizer``: None: as ``name``; "roberta-from-captions": built from the training captions.
    The first position that a token gets is ``pad_id`` + 1, so a text may have
    ``max_positions`` - ``pad_id`` - 1 ids.
    """

    name: str = option()
    max_positions: int = option()
    token_types: int = option()
    layer_norm_eps: float = option()
    pad_id: int = option(at_least=0)


def build_roberta(text: RobertaTextConfig, pretrained: bool, vocabulary: int) -> RobertaModel:
    """The RoBERTa of ``text`` with a pooler, with pretrained or random weights, in float32.

    If the weights have no pooler, it is random (normal, 0.02), as in the library. Raises
    ConfigError for invalid sizes, a name that cannot be loaded or is not a RoBERTa, and for
    pretrained weights with a tokenizer built from captions.
    """
    options: dict[str, Any] = {
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "attn_implementation": "sdpa",
    }
    if pretrained:
        return _load(text, options)
    try:
        config = RobertaConfig(
            vocab_size=vocabulary, pad_token_id=text.pad_id, **library_sizes(text), **options
        )
        return RobertaModel(config)
    except (ValueError, KeyError, AssertionError) as error:
        raise ConfigError(f"model.text: invalid sizes for a RoBERTa: {error}") from error


def _load(text: RobertaTextConfig, options: dict[str, Any]) -> RobertaModel:
    if text.tokenizer is not None and text.tokenizer.endswith("-from-captions"):
        raise ConfigError(
            f"model.text.tokenizer={text.tokenizer}: a vocabulary built from captions does not fit "
            "pretrained weights; pass model.pretrained=false, or leave model.text.tokenizer=null"
        )
    return load_pretrained(
        text.name, "model.text.name", "roberta", RobertaModel, RobertaConfig, **options
    )


def roberta_states(roberta: RobertaModel, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Last hidden states [B, L, width] and pooled output (tanh) [B, width] of ``tokens`` [B, L].

    Ids where ``mask`` [B, L] is False are replaced by the padding id, which has a fixed embedding
    and position, and masked as keys; they are still computed as queries.
    """
    pad = roberta.config.pad_token_id
    assert pad is not None
    ids = tokens.masked_fill(~mask, pad)
    # Four-dimensional, so that the library does not synchronize to check whether it is all ones.
    output = roberta(ids, attention_mask=mask[:, None, None, :])
    return output.last_hidden_state, output.pooler_output
