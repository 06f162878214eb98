"""Composing with values set in a copy of what the groups chose, against Hydra alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from itr import compose as composing
from itr.compose import compose
from tests.conftest import CONF, TINY


def by_hydra(name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        return hydra.compose(name, overrides=overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("train", []),
        ("train", [*TINY]),
        ("train", ["model=albef", "task=pretrain", "model.text.width=8", "loss.weights.itm=0"]),
        ("train", ["seed=3", "recipe=hrem_f30k_retrieval", "batch_size=7", "~recipe"]),
        ("train", ["loss=infonce", "+loss.slots={batch: x}", "data.root='a b, c'", "out=null"]),
        ("train", ["model=multisea", "loss.default.new=1", "tracker.wandb.tags=[a, b]"]),
        ("train", ["model.embed_size=[1, {a: 2}]", "model={embed_size: 5}"]),
        ("train", ["seed=1", "++seed=2"]),
        ("train", ["experiment=alip_gates/no_gates", "model/text=roberta", "seed=3"]),
        ("train", ["trainer.epoch=3"]),
        ("train", ["seed=1,2"]),
        ("train", ["model=hrme", "seed=1"]),
        ("train", ["nonsense"]),
        ("eval", ["checkpoint=x", "rerank.k=3", "device=cpu", "data=f30k"]),
    ],
    ids=str,
)
def test_the_configuration_or_the_error_is_that_of_hydra(name: str, overrides: list[str]) -> None:
    try:
        expected = by_hydra(name, overrides)
    except HydraException as refused:
        with pytest.raises(type(refused)) as error:
            compose(name, overrides)
        assert str(error.value) == str(refused)
        return
    for _ in range(2):  # read from files, and from what was kept
        found = compose(name, overrides)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
        assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)


def test_a_caller_owns_its_configuration() -> None:
    compose("train", ["seed=3"]).trainer.epochs = 12345
    assert compose("train", ["seed=3"]).trainer.epochs != 12345


def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    monkeypatch.setattr(composing, "CONF", folder)
    assert compose("train", ["seed=3"]).optim.lr != 0.125
    file = folder / "local" / "default.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text("# @package _global_\noptim: {lr: 0.125}\n")
    assert compose("train", ["seed=3"]).optim.lr == 0.125
