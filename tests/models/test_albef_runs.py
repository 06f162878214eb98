"""ALBEF from files on disk to results: pre-training, fine-tuning from it, both stages, eval.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from itr import checkpoint
from itr.errors import CheckpointError, ConfigError
from itr.jobs.evaluate import evaluate
from itr.jobs.train import train
from itr.models.build import restore
from itr.official import albef as official
from tests.conftest import compose
from tests.data.shard_readers import write_shards
from tests.models.model_sizes import SMALL_ALBEF

SMALL = (
    *SMALL_ALBEF,
    "trainer.max_steps=4",
    "model.queue_size=40",
    "model.image.mlp_ratio=4",
    "rerank.k=12",
)


@pytest.fixture(scope="module")
def here(world: Path) -> tuple[str, ...]:
    return (*SMALL, f"data.root={world / 'data'}", f"data.cache={world / 'cache'}")


@pytest.fixture(scope="module")
def pretrained(here: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    train(compose("train", [*here, "task=pretrain", f"out={out}"]))
    return out


def test_pretraining_trains_three_terms(pretrained: Path) -> None:
    logged = (pretrained / "metrics.jsonl").read_text()
    assert all(f'"train/{term}"' in logged for term in ("itc", "itm", "mlm"))
    assert "recipe: albef_scenes_pretrain" in (pretrained / "train.log").read_text()


def test_pretraining_from_web_shards(tmp_path: Path) -> None:
    """With the paper's recipe in a small size; what is held out is ranked in the end."""
    write_shards(tmp_path / "tars", samples=60, shards=3)
    sizes = [size for size in SMALL if not size.startswith("data")]
    random = ["model.pretrained=false", "model.text.tokenizer=wordpiece"]
    random += [
        "model.text.vocabulary_size=60",
        "model.text.heads=4",
        "model.image.heads=4",
    ]
    places = [f"data.shards={tmp_path / 'tars'}", f"data.cache={tmp_path / 'cache'}"]
    given = ["data=yfcc", "task=pretrain", "data.held_out=15", f"out={tmp_path / 'run'}", *places]
    results = train(compose("train", [*sizes, *random, *given, "batch_size=10"]))
    assert results["updates"] == 4 and results["recipe"] == "albef_yfcc_pretrain"
    assert results["test/n_images"] == 15 and results["test/rerank_k"] == 12
    said = " ".join((tmp_path / "run" / "train.log").read_text().split())
    assert "30 images, 30 captions, shards layout" in said
    assert "10 pairs on each device" in said and "precision: fp32, as albef_yfcc" in said
    logged = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert all(f'"train/{term}"' in logged for term in ("itc", "itm", "mlm"))


def finetune(here: tuple[str, ...], out: Path, *more: str) -> dict[str, Any]:
    return train(compose("train", [*here, f"out={out}", *more]))


def test_fine_tuning_from_a_run_and_both_stages(
    here: tuple[str, ...], pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    larger = ("model.image.size=48", "model.momentum_fusion=true")
    results = finetune(here, out, f"model.init={pretrained}", *larger)
    said = " ".join((out / "train.log").read_text().split())
    assert "resized (2): twin.vision.pos_embed, vision.pos_embed" in said
    assert "left at their initial values (1): text_queue.ids" in said
    assert "words.* (" in said.split("ignored")[1]
    assert results["test/rerank_k"] == 12
    checked = f"checkpoint={out}"
    again = evaluate(compose("eval", [checked, "device=cpu"]))
    first = evaluate(compose("eval", [checked, "device=cpu", "rerank.enabled=false"]))
    for way in ("i2t", "t2i"):
        for key in ("r1", "r5", "r10"):
            assert again[f"test/{way}_{key}"] == pytest.approx(results[f"test/{way}_{key}"])
            stage = f"test/first_stage/{way}_{key}"
            assert first[f"test/{way}_{key}"] == pytest.approx(results[stage])
    whole = evaluate(compose("eval", [checked, "device=cpu", "rerank.k=100"]))
    assert whole["test/rerank_k"] == min(100, whole["test/n_captions"])
    assert whole["test/t2i_r10"] >= 0


def test_fine_tuning_from_an_authors_file(
    here: tuple[str, ...], pretrained: Path, tmp_path: Path
) -> None:
    path = pretrained / "checkpoints" / "best.safetensors"
    source = restore(path, checkpoint.read_meta(path))
    torch.save(official.export(source), tmp_path / "ALBEF.pth")  # type: ignore[arg-type]
    size = f"model.text.vocabulary_size={source.facts.vocabulary}"
    out = tmp_path / "run"
    finetune(here, out, f"model.init={tmp_path / 'ALBEF.pth'}", "trainer.max_steps=1", size)
    assert "model.init: loaded " in (out / "train.log").read_text()


def test_weights_that_do_not_fit(here: tuple[str, ...], pretrained: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path / 'run'}"
    with pytest.raises(CheckpointError, match=r"model.init=.*expected \("):
        train(compose("train", [*here, out, f"model.init={pretrained}", "model.image.width=16"]))
    with pytest.raises(CheckpointError, match="does not exist"):
        train(compose("train", [*here, f"{out}2", f"model.init={tmp_path / 'nowhere'}"]))


def test_options_that_are_refused(here: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rerank\.k: 5; expected at least 10"):
        train(compose("train", [*here, "rerank.k=5", f"out={tmp_path / 'run'}"]))
    with pytest.raises(ConfigError, match="task=pretrain: HREM"):
        train(compose("train", ["model=hrem", "task=pretrain", f"out={tmp_path / 'run'}"]))
    with pytest.raises(ConfigError, match=r"rerank\.enabled=true: HREM .*rerank\.enabled=null"):
        train(compose("train", ["model=hrem", "rerank.enabled=true", f"out={tmp_path / 'run'}"]))
