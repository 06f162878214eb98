"""Weights of strangers: read as data, or one sentence that says what the file is."""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from itr import weights_file
from itr.errors import CheckpointError, ConfigError
from itr.nn.bert.bert import load_bert
from itr.official.name_table import load_pickle
from itr.weights_file import load_torch, load_weights_file

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 440473133\n"


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "Git LFS pointer"),
        (b"  <!DOCTYPE html><html>quota</html>", "web page"),
        (b"<html><body>", "web page"),
        (b"\x1f\x8b\x08abc", "gzip"),
        (b"", "empty file"),
        (b"PK\x03\x04" + bytes(200), "cannot be read"),
        (b"\x80\x02(" * 2000, "cannot be read"),
        (pickle.dumps(print, protocol=2), "cannot be read"),
        ({"a": torch.zeros(1).expand(1 << 30)}, "its tensors need 4.3 GB"),
        ({"a": torch.zeros(1).as_strided((1 << 40,), (0,))}, "its tensors need"),
    ],
)
def test_what_is_no_weights_is_named(content: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.pth", content)
    for read in (load_torch, load_pickle, load_weights_file):
        with pytest.raises(CheckpointError, match=f"x.pth.*{words}") as refusal:
            read(path)
        message = str(refusal.value)
        assert "weights_only" not in message and message.isprintable()


def test_zip_bombs_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/code/a.py", b"")
        archive.writestr("x/data/0", bytes(100 << 20))
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="its entries need 0.1 GB"):
        load_pickle(path)


def test_shared_lists_are_not_counted_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_file, "MAX_NODES", 50_000)
    value: Any = 1
    for _ in range(40):
        value = [value, value]
    with pytest.raises(CheckpointError, match="values; it is not loaded"):
        load_torch(write(tmp_path / "x.pth", value))


def test_numbers_of_numpy_and_paths_are_read(tmp_path: Path) -> None:
    options = argparse.Namespace(save=pathlib.PosixPath("/data/runs"), seed=np.int64(3))
    content = {"best": np.float64(0.5), "f": np.float32(2), "opt": options, "w": torch.ones(2)}
    read = load_torch(write(tmp_path / "x.pth", content))
    assert (read["best"], read["f"], read["opt"].seed) == (0.5, 2, 3)
    assert read["opt"].save == pathlib.PosixPath("/data/runs")


def test_wrappers_and_prefixes_are_removed(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "module.b": torch.ones(1)}
    for content in (state, {"model": state, "epoch": 3}, {"state_dict": {"model": state}}):
        assert set(load_weights_file(write(tmp_path / "x.pth", content))) == {"a", "b"}
    for content in ({"state": {}, "param_groups": []}, [torch.ones(1)], 3):
        with pytest.raises(CheckpointError, match="contains no weights"):
            load_weights_file(write(tmp_path / "x.pth", content))


State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def bert() -> State:
    torch.manual_seed(0)
    return {k: value.clone() for k, value in BertModel(BertConfig(**SIZES)).state_dict().items()}


def folder(root: Path, weights: Any, config: Any = None, config_name: str = "config.json") -> Path:
    root.mkdir()
    values = BertConfig(**SIZES).to_dict() if config is None else config
    (root / config_name).write_text(values if isinstance(values, str) else json.dumps(values))
    write(root / "pytorch_model.bin", weights)
    return root


SOUND: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "module": lambda state: {f"module.{k}": v for k, v in state.items()},
    "wrapped": lambda state: {"model": state, "epoch": 3},
    "prefixed": lambda state: {f"bert.{k}": v for k, v in state.items()},
    "both": lambda state: {"state_dict": {f"module.bert.{k}": v for k, v in state.items()}},
    "no pooler": lambda state: {k: v for k, v in state.items() if "pooler" not in k},
}


@pytest.mark.parametrize("kind", SOUND)
def test_weights_of_a_bert_are_found(kind: str, bert: State, tmp_path: Path) -> None:
    loaded = load_bert(str(folder(tmp_path / "x", SOUND[kind](bert)))).state_dict()
    for name, value in bert.items():
        assert "pooler" in name or torch.equal(loaded[name], value)


@pytest.mark.parametrize("name", ["config.json", "bert_config.json"])
def test_a_config_without_a_kind_is_a_bert(name: str, bert: State, tmp_path: Path) -> None:
    values = {k: v for k, v in BertConfig(**SIZES).to_dict().items() if k != "model_type"}
    loaded = load_bert(str(folder(tmp_path / "x", bert, values, name))).state_dict()
    key = "embeddings.word_embeddings.weight"
    assert torch.equal(loaded[key], bert[key])


BROKEN: dict[str, tuple[Callable[[State], Any], Any, str]] = {
    "half": (lambda s: {k: v for k, v in s.items() if k.startswith("emb")}, None, "missing"),
    "optimizer": (lambda s: {"state": {}, "param_groups": []}, None, "no BertModel could be"),
    "pointer": (lambda s: POINTER, None, "LFS"),
    "page": (lambda s: b"<!DOCTYPE html>", None, "web page"),
    "cut": (lambda s: b"PK\x03\x04abc", None, "no BertModel could be loaded"),
    "other": (lambda s: s, {"model_type": "gpt2"}, "'gpt2'; expected a 'bert'"),
    "no JSON": (lambda s: s, "{", "no JSON"),
    "deep JSON": (lambda s: s, "[" * 100_000, "no JSON"),
    "list": (lambda s: s, "[1]", "holds a list"),
    "odd sizes": (lambda s: s, {**SIZES, "hidden_size": "x"}, "no BertModel could be loaded"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_nothing_stays_random_in_silence(kind: str, bert: State, tmp_path: Path) -> None:
    change, config, words = BROKEN[kind]
    path = folder(tmp_path / "x", change(bert), config)
    with pytest.raises(ConfigError, match=f"model.text.name={path}.*{words}") as refusal:
        load_bert(str(path))
    assert "\n" not in str(refusal.value)


def test_a_pointer_for_safetensors(bert: State, tmp_path: Path) -> None:
    path = folder(tmp_path / "x", bert)
    (path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(ConfigError, match="LFS"):
        load_bert(str(path))
    save_file({"a": torch.ones(1)}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="weights of the BertModel are missing"):
        load_bert(str(path))
