"""The authors' HREM checkpoint: read without executing code, refused with reasons, written."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig

from itr.errors import CheckpointError
from itr.losses.triplet import DistanceWeightedTriplet
from itr.models.hrem import HREM
from itr.nn.bert.bert import library_sizes
from itr.official.hrem import export, name_table, official_state, read
from tests import naive_hrem as naive

BERT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
}
HEADS = {"heads": 3}
OPTIONS = naive.Options(embed_size=24, nhead=4, img_dim=9, topk=5, num_layers_enc=2)


@pytest.fixture
def payload() -> dict[str, Any]:
    """As the authors' trainer writes it, of other sizes than the golden one."""
    reference = naive.NaiveHREM(OPTIONS, BertConfig(vocab_size=41, **BERT))
    texts = reference.txt_enc.state_dict()
    texts["bert.embeddings.position_ids"] = torch.arange(32)[None]
    return {
        "model": [reference.img_enc.state_dict(), texts],
        "opt": argparse.Namespace(**vars(OPTIONS), dataset="coco", no_imgnorm=False, gpu_id=0),
        "epoch": 7,
        "best_rsum": 500.5,
        "Eiters": 99,
    }


def save(folder: Path, payload: Any) -> Path:
    torch.save(payload, folder / "model_best.pth")
    return folder / "model_best.pth"


def ours(config: Any, facts: Any) -> HREM:
    slots = nn.ModuleDict({"base": DistanceWeightedTriplet(), "graph": DistanceWeightedTriplet()})
    weights = {"base": 1.0, "cross": 1.0, "graph": 1.0, "reg": 10.0}
    return HREM(config, slots, weights, facts)


def test_sizes_and_options_are_derived(payload: dict[str, Any], tmp_path: Path):
    found = read(save(tmp_path, payload), HEADS)
    config = found.config
    assert (config.embed_size, config.heads, config.cutoff) == (24, 4, 1.9)
    assert (config.graph.topk, config.graph.depth, config.graph.warmup) == (5, 2, 0)
    assert library_sizes(config.text).items() >= BERT.items()
    assert (found.facts.vocabulary, found.facts.region_width) == (41, 9)
    assert found.weights == {"base": 1.0, "cross": 1.0, "graph": 1.0, "reg": 10.0}
    assert json.loads(json.dumps(found.info))["opt"]["gpu_id"] == 0
    assert (found.info["epoch"], found.info["best_rsum"]) == (7, 500.5)
    assert found.report.ignored == ["txt_enc.bert.embeddings.position_ids"]
    assert {name.split(".")[0] for name in found.report.missing} == {"relevance", "graph"}


def test_every_weight_is_imported_under_its_name(payload: dict[str, Any], tmp_path: Path):
    found = read(save(tmp_path, payload), HEADS)
    model = ours(found.config, found.facts)
    found.load_into(model)
    state = official_state(model)
    for side, given in zip(("img_enc.", "txt_enc."), payload["model"], strict=True):
        for name, value in given.items():
            if "position_ids" not in name:
                assert torch.equal(state[side + name], value)


def test_data_parallel_prefix_is_removed(payload: dict[str, Any], tmp_path: Path):
    plain = read(save(tmp_path, payload), HEADS)
    payload["model"] = [{f"module.{k}": v for k, v in s.items()} for s in payload["model"]]
    parallel = read(save(tmp_path, payload), HEADS)
    assert parallel.state.keys() == plain.state.keys() and parallel.config == plain.config


def test_export_and_import_are_inverse(payload: dict[str, Any], tmp_path: Path):
    found = read(save(tmp_path, payload), HEADS)
    model = ours(found.config, found.facts)
    written = export(model, epoch=3, best_rsum=1.5, updates=4)
    again = read(save(tmp_path, written), HEADS)
    assert again.config == found.config
    assert all(torch.equal(value, model.state_dict()[k]) for k, value in again.state.items())
    reference = naive.NaiveHREM(OPTIONS, BertConfig(vocab_size=41, **BERT))
    reference.img_enc.load_state_dict(written["model"][0])
    reference.txt_enc.load_state_dict(written["model"][1])


def test_the_table_is_one_to_one(payload: dict[str, Any], tmp_path: Path):
    found = read(save(tmp_path, payload), HEADS)
    table, names = name_table(2), list(ours(found.config, found.facts).state_dict())
    there = [table.to_official(name) for name in names]
    assert None not in there and len(set(there)) == len(names)
    assert [table.to_ours(str(name)) for name in there] == names
    assert table.to_ours("criterion.unknown") is None


def test_missing_unexpected_and_misshapen_weights_are_listed(
    payload: dict[str, Any], tmp_path: Path
):
    images, texts = payload["model"]
    del texts["linear.bias"]
    images["fc.extra.weight"] = torch.zeros(1)
    images["aggr.layers.0.linear1.weight"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError) as caught:
        read(save(tmp_path, payload), HEADS)
    for words in (
        "missing (1): texts.project.bias",
        "unexpected (1): img_enc.fc.extra.weight",
        "images.relation.layer.expand.weight (2, 2), expected (24, 24)",
    ):
        assert words in str(caught.value)


def test_unknown_heads_are_reported(payload: dict[str, Any], tmp_path: Path):
    with pytest.raises(CheckpointError, match="model.text.heads"):
        read(save(tmp_path, payload))


@pytest.mark.parametrize("no_imgnorm", [True, False])
def test_normalization_of_one_modality(payload: dict[str, Any], tmp_path: Path, no_imgnorm: bool):
    payload["opt"].no_imgnorm, payload["opt"].no_txtnorm = no_imgnorm, not no_imgnorm
    imported = read(save(tmp_path, payload), HEADS)
    model = HREM(imported.config, nn.ModuleDict(), imported.weights, imported.facts)
    assert model.images.relation.normalize is not no_imgnorm
    assert model.texts.relation.normalize is no_imgnorm
    options = export(model)["opt"]
    assert (options.no_imgnorm, options.no_txtnorm) == (no_imgnorm, not no_imgnorm)


class Trap:
    """Would leave a file behind if the pickle were executed."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_executed(payload: dict[str, Any], tmp_path: Path):
    payload["opt"].extra = Trap(tmp_path / "executed")
    with pytest.raises(CheckpointError, match="cannot be read as a PyTorch checkpoint"):
        read(save(tmp_path, payload), HEADS)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_rejected(payload: dict[str, Any], tmp_path: Path, share: float):
    path = save(tmp_path, payload)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="model_best.pth"):
        read(path, HEADS)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"model": {"a": torch.zeros(1)}},
        {"model": [{"a": torch.zeros(1)}, {"b": torch.zeros(1)}]},
        [1, 2],
    ],
)
def test_other_checkpoints_are_rejected(content: Any, tmp_path: Path):
    with pytest.raises(CheckpointError, match="not a checkpoint of the authors of HREM"):
        read(save(tmp_path, content), HEADS)


def test_files_that_are_not_checkpoints_are_rejected(tmp_path: Path):
    path = tmp_path / "model_best.pth"
    with pytest.raises(CheckpointError, match="file not found"):
        read(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(CheckpointError, match="web page"):
        read(path)
    path.write_bytes(pickle.dumps({"model": [1, 2]}, protocol=2))
    with pytest.raises(CheckpointError):
        read(path)
