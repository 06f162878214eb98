"""BERT from directories that hold it, half of it, or something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from itr.errors import ConfigError
from itr.nn.bert.bert import TextConfig, bert_states, load_bert, random_bert, sizes_of

SIZES = {
    "width": 12,
    "depth": 2,
    "heads": 3,
    "mlp_width": 20,
    "max_positions": 16,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    random_bert(30, TextConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_load_from_a_directory(saved: Path):
    bert = load_bert(str(saved), dropout=0.25)
    assert {key: sizes_of(bert)[key] for key in SIZES} == SIZES
    assert bert.config.hidden_dropout_prob == bert.config.attention_probs_dropout_prob == 0.25
    again = random_bert(30, TextConfig(**sizes_of(bert)))
    again.load_state_dict(bert.state_dict())
    tokens = torch.tensor([[2, 7, 3, 0], [2, 5, 9, 3]])
    torch.testing.assert_close(*(bert_states(b.eval(), tokens) for b in (bert, again)))


def test_masked_ids_do_not_affect_other_states():
    bert = random_bert(30, TextConfig(**SIZES)).eval()
    short, padded = torch.tensor([[2, 7, 3]]), torch.tensor([[2, 7, 3, 0, 0]])
    states = bert_states(bert, padded)
    torch.testing.assert_close(states[:, :3], bert_states(bert, short))
    assert states.isfinite().all() and states[0, 3].abs().sum() > 0


@pytest.mark.parametrize("damage", ["no weights", "truncated", "another kind", "empty"])
def test_a_damaged_directory_is_rejected(saved: Path, damage: str):
    weights, about = saved / "model.safetensors", saved / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "another kind":
        about.write_text(json.dumps({**json.loads(about.read_text()), "model_type": "roberta"}))
    else:
        weights.unlink()
        if damage == "empty":
            about.unlink()
    with pytest.raises(ConfigError, match="model.text.name"):
        load_bert(str(saved))


def test_invalid_sizes_are_rejected():
    with pytest.raises(ConfigError, match=r"model\.text"):
        random_bert(30, TextConfig(**{**SIZES, "heads": 5}))
