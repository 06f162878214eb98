"""What a stranger's file says is data: no variable is read, no server asked, nothing written."""

from __future__ import annotations

import json
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from itr import checkpoint
from itr.data.config import DataConfig
from itr.errors import CheckpointError, ConfigError, DataError
from itr.instantiate import check
from itr.jobs.eval.checkpoint_data import SCENES, data_of_checkpoint
from itr.jobs.evaluate import evaluate
from itr.jobs.load_checkpoint import load_checkpoint
from itr.models.build import model_meta
from tests.conftest import compose
from tests.models.tiny import build

SECRET = "s3cr3t-value-123"
STOLEN = "attacker/${oc.env:ATTACK_SECRET}"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses that are connected to; none can be reached."""
    asked: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setenv("ATTACK_SECRET", SECRET)
    return asked


def forged(path: Path, model: dict[str, Any], **more: Any) -> Path:
    """An HREM checkpoint whose header was changed: options of ``model``, and ``more``."""
    hrem = build("hrem")
    meta = {**model_meta(hrem), "model_name": "hrem", "loss": None, "tokenizer": None}
    options = {**meta["model_config"], **model}
    options["text"] = {**meta["model_config"]["text"], **model.get("text", {})}
    tensors = {f"model/{key}": value for key, value in hrem.state_dict().items()}
    checkpoint.write(path, tensors, {**meta, "model_config": options, **more})
    return path


@pytest.mark.parametrize("command", ["load", "eval"])
def test_a_variable_in_a_header_is_not_read(
    command: str, tmp_path: Path, offline: list[Any]
) -> None:
    text = {"name": STOLEN, "tokenizer": None}
    path = forged(tmp_path / "evil.safetensors", {"text": text})
    with pytest.raises(CheckpointError, match="never downloaded") as refusal:
        if command == "load":
            load_checkpoint(path)
        else:
            evaluate(compose("eval", [f"checkpoint={path}", "device=cpu"]))
    assert STOLEN in str(refusal.value) and SECRET not in str(refusal.value)
    assert not offline


def test_a_header_downloads_no_weights(tmp_path: Path, offline: list[Any]) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    tokenizer = json.dumps({"options": {}, "tokens": tokens})
    options = {"pretrained": True, "text": {"name": "attacker/weights", "tokenizer": None}}
    path = forged(tmp_path / "evil.safetensors", options, tokenizer=tokenizer)
    assert load_checkpoint(path).model.config.pretrained is False
    assert not offline


def test_strings_of_a_file_are_literal() -> None:
    node = {"name": "x", "root": "${oc.env:ATTACK_SECRET}", "columns": {"image": r"\${a} ${"}}
    data = check(node, DataConfig, "data")
    assert (data.root, data.columns) == (node["root"], node["columns"])
    with pytest.raises(ConfigError, match=r"noise.*\$\{oc.env:ATTACK_SECRET\}") as refusal:
        check({**node, "noise": "${oc.env:ATTACK_SECRET}"}, DataConfig, "data")
    assert SECRET not in str(refusal.value)


PREPARE = {"_target_": SCENES, "train": 3, "val": 1, "test": 1, "seed": 0}


def test_a_header_generates_no_dataset(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    data = {"name": "scenes", "root": str(tmp_path / "x"), "cache": str(tmp_path / "y")}
    path = forged(
        tmp_path / "evil.safetensors",
        {},
        tokenizer=json.dumps({"options": {}, "tokens": tokens}),
        config={"data": {**data, "prepare": PREPARE}},
    )
    with pytest.raises(DataError, match=r"data=scenes data\.prepare\.train=3"):
        evaluate(compose("eval", [f"checkpoint={path}", "device=cpu"]))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("prepare", ["rm", {"_target_": "itr.sweep.cli.main"}, {"train": 1}])
def test_a_header_names_nothing_else_that_makes_data(prepare: Any, tmp_path: Path) -> None:
    stored = {"name": "f30k", "root": "data", "prepare": prepare}
    with pytest.raises(CheckpointError, match="data=f30k data.root=DIR"):
        data_of_checkpoint(tmp_path / "evil.safetensors", stored, {})


def test_places_to_write_are_the_users_own(tmp_path: Path) -> None:
    stored = {"name": "f30k", "root": "data", "cache": "/stranger", "noise_file": "/nowhere.npy"}
    data = data_of_checkpoint(tmp_path / "evil.safetensors", stored, {})
    assert (data.cache, data.noise_file, data.root) == (DataConfig("", "").cache, None, "data")
    (tmp_path / "noise.npy").touch()
    stored["noise_file"] = str(tmp_path / "noise.npy")
    data = data_of_checkpoint(tmp_path / "evil.safetensors", stored, {"cache": "mine"})
    assert (data.cache, data.noise_file) == ("mine", stored["noise_file"])


def test_layers_that_no_file_holds_are_not_built(tmp_path: Path) -> None:
    path = forged(tmp_path / "evil.safetensors", {"text": {"depth": 10**8}})
    with pytest.raises(CheckpointError, match=r"model\.text\.depth=100000000; expected at most"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "options",
    [
        {"text": {"width": 2**20}},  # terabytes of weights
        {"text": {"max_positions": 10**9}},
        {"text": {"width": 2**62}},
        {"embed_size": -4},
        {"heads": 7},
        {"text": {"heads": 0}},
    ],
)
def test_sizes_that_the_file_does_not_have_take_no_memory(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = forged(tmp_path / "evil.safetensors", options)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 30), before[1]))
    try:
        with pytest.raises(CheckpointError, match="evil.safetensors") as refusal:
            load_checkpoint(path)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert "allocate" not in str(refusal.value)


@pytest.mark.parametrize(
    "change",
    [
        {"model_target": None},
        {"weights": {"base": "x"}},
        {"facts": {"vocabulary": 40, "x": 1}},
        {"facts": []},
        {"best": 3},
        {"config": {"task": "retrieval"}},
        {"tokenizer": "{}"},
        {"depth": {"coco": "many"}},
    ],
)
def test_fields_of_another_type_are_named(change: dict[str, Any], tmp_path: Path) -> None:
    path = forged(tmp_path / "evil.safetensors", {}, **change)
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(path)
    assert "\n" not in str(refusal.value)
