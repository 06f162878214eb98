"""BERT as a text encoder, from the Hugging Face hub, a local directory, or random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, BertConfig, BertModel
from transformers.utils.logging import disable_progress_bar

from itr.errors import ConfigError

disable_progress_bar()  # loading takes a second; the bar would break ours

SIZES = (  # what rebuilds the architecture, beside the vocabulary; names of `BertConfig`
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
)


def _options(dropout: float) -> dict[str, Any]:
    return {
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "attn_implementation": "sdpa",
    }


def load_bert(name: str, dropout: float = 0.1) -> BertModel:
    """Pre-trained weights by Hugging Face name or local directory, in float32.

    What lies on this machine comes first; the hub is asked only for what does not. Raises
    ConfigError if ``name`` cannot be found or is no BERT.
    """
    try:
        return _load(name, dropout, local_files_only=True)
    except OSError as error:
        if Path(name).expanduser().is_dir():
            raise _unusable(name, error) from error
    try:
        return _load(name, dropout, local_files_only=False)
    except OSError as error:
        raise _unusable(name, error) from error


def _load(name: str, dropout: float, local_files_only: bool) -> BertModel:
    where = str(Path(name).expanduser()) if name.startswith("~") else name
    try:
        kind = AutoConfig.from_pretrained(where, local_files_only=local_files_only).model_type
        if kind != "bert":
            raise ConfigError(f"model.text.name: '{name}' is a '{kind}', expected a 'bert'")
        return BertModel.from_pretrained(
            where, dtype=torch.float32, local_files_only=local_files_only, **_options(dropout)
        )
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise _unusable(name, error) from error


def _unusable(name: str, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"model.text.name: no BERT could be loaded from '{name}' ({reason}); give a local "
        "directory (config.json, model.safetensors) or a Hugging Face name that can be reached, or "
        "type model.pretrained=false for random weights of the sizes in model.text"
    )


def random_bert(vocabulary: int, dropout: float = 0.1, **sizes: Any) -> BertModel:
    """Random weights; ``sizes`` are those of `SIZES`. Raises ConfigError if they do not fit."""
    try:
        return BertModel(BertConfig(vocab_size=vocabulary, **sizes, **_options(dropout)))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"model.text: these sizes make no BERT: {error}") from error


def sizes_of(bert: BertModel) -> dict[str, Any]:
    """The values of `SIZES` that ``bert`` has."""
    return {key: getattr(bert.config, key) for key in SIZES}


def bert_states(bert: BertModel, tokens: Tensor) -> Tensor:
    """Last hidden states [B, L, width] of ``tokens`` [B, L]; id 0 is hidden from attention.

    Hidden positions are still computed as queries. The four-dimensional mask is used as it is,
    where a two-dimensional one would make the library ask the device whether it is all ones.
    """
    return bert(tokens, attention_mask=(tokens != 0)[:, None, None, :]).last_hidden_state
