"""model=clip: zero-shot and fine-tuned, against open_clip's own training step, and bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from torch import nn

import itr
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import CheckpointError, ConfigError
from itr.jobs.commands.embed_search_cli import search
from itr.jobs.evaluate import evaluate
from itr.jobs.load_checkpoint import load_checkpoint
from itr.jobs.load_tower import load_zero_shot
from itr.jobs.train import train
from itr.losses.infonce import InfoNCE
from itr.nn.tower import open_clip_tower, tower_names
from tests.conftest import compose
from tests.models.tiny import pixel_batch
from tests.nn.tiny_towers import save_open_clip, save_tower
from tests.training.sizes import COMMON

NODE = {"_target_": "itr.models.clip.CLIP", "name": "clip"}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    for family in ("clip", "siglip"):
        save_tower(family, folder)
    save_open_clip("clip", folder)
    return folder


def places(world: Path) -> list[str]:
    return [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}", "device=cpu"]


def test_a_step_is_open_clips(towers: Path) -> None:
    """One pair an image: the loss and every gradient of open_clip's ClipLoss."""
    tower = f"local-dir:{towers / 'open_clip_clip'}"
    model = load_zero_shot({**NODE, "tower": tower}, "cpu").retriever.train()
    model.slots = nn.ModuleDict({"itc": InfoNCE()})
    given = pixel_batch(6, 20)
    given = dataclasses.replace(given, pixels=torch.randn(6, 3, 32, 32), positive_pairs=6)
    found = model(given, Clock(), Draws()).losses["itc"]
    found.backward()
    theirs, _ = open_clip.create_model_from_pretrained(tower)
    images, texts, scale = theirs.train()(given.pixels, given.tokens)
    expected = open_clip.ClipLoss()(images, texts, scale)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    assert {f"tower.{name}" for name in grads} == {name for name, _ in model.named_parameters()}
    for name, grad in grads.items():
        own = model.get_parameter(f"tower.{name}").grad
        worst = (own - grad).abs().max() / grad.abs().max()
        assert worst < 1e-5, (name, worst)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_another_image_size_interpolates_as_transformers(family: str, towers: Path) -> None:
    options = {**NODE, "tower": str(towers / family), "size": 48}
    model = load_zero_shot(options, "cpu").retriever
    assert model.view.pixels_eval.size == 48
    pixels = torch.randn(2, 3, 48, 48)
    theirs = transformers.AutoModel.from_pretrained(towers / family).eval()
    with torch.no_grad():
        found = model.encode_images(dataclasses.replace(pixel_batch(2), pixels=pixels)).pooled
        expected = theirs.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)
    expected = nn.functional.normalize(expected.pooler_output, dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def run(
    towers: Path, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run from a SigLIP tower whose folder is gone, and its results."""
    folder = tmp_path_factory.mktemp("clip_run")
    tower = shutil.copytree(towers / "siglip", folder / "tower")
    given = [f"model.tower={tower}", "loss=sigmoid", "model.pretrained=true"]
    given += ["model.architecture=null", "batch_size=20", "trainer.max_steps=2", *COMMON]
    out = folder / "run"
    results = train(compose("train", ["model=clip", *given, *places(world), f"out={out}"]))
    shutil.rmtree(tower)
    return out, results


def test_a_run_goes_on_from_the_trained_scale_and_outlives_its_tower(
    run: tuple[Path, dict[str, Any]], towers: Path, world: Path
) -> None:
    out, results = run
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    theirs = transformers.AutoModel.from_pretrained(towers / "siglip")
    (scale,) = (line["train/scale"] for line in lines if "train/scale" in line)
    assert scale == pytest.approx(theirs.logit_scale.exp().item(), rel=0.02)
    assert results["test/truncated_captions"] > 0
    log = (out / "train.log").read_text()
    assert "exceed the 20 token ids" in log and "goes on from the scale" in log
    found = evaluate(compose("eval", [f"checkpoint={out}", *places(world)]))
    assert found["test/rsum"] == results["test/rsum"]
    assert found["tower"].endswith("tower")


def test_a_run_classifies_and_searches(
    run: tuple[Path, dict[str, Any]], world: Path, tmp_path: Path
) -> None:
    out, root = run[0], tmp_path / "classes"
    pictures = sorted((world / "data").rglob("*.jpg"))
    for number, picture in enumerate(pictures[:4]):
        place = root / ("circle", "square")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place / f"{number}{picture.suffix}")
    shots = ["task=zeroshot", "data=imagefolder", f"data.root={root}", "device=cpu"]
    found = evaluate(compose("eval", [f"checkpoint={out}", *shots, 'data.templates=["a {}."]']))
    assert found["test/n_images"] == 4 and 0 <= found["test/top1"] <= 100
    assert search([str(out), "a red circle", "--images", str(root), "--top", "2"]) == 0
    assert itr.load(out, device="cpu").encode_texts(["a dog"]).shape == (1, 16)


def test_a_tower_is_evaluated_zero_shot(towers: Path, world: Path, tmp_path: Path) -> None:
    given = ["model=clip", f"model.tower={towers / 'clip'}", "data=scenes", *COMMON[:3]]
    out = tmp_path / "out"
    options = [*given, *places(world), "rerank.k=12", f"out={out}"]
    found = evaluate(compose("eval", options))
    assert found["checkpoint"] == found["tower"] == str(towers / "clip")
    assert found["model"] == "clip" and len(found["checkpoint_sha256"]) == 64
    assert 0 < found["test/rsum"] < 600 and json.loads((out / "results.json").read_text())
    again = evaluate(compose("eval", [*options, f"embeddings={tmp_path / 'e.safetensors'}"]))
    assert again["test/rsum"] == found["test/rsum"]


@pytest.mark.parametrize(
    ("tower", "told"),
    [
        ("null", "model.tower: .*expected.*model.tower=NAME"),
        ("ViT-B-32/laion2b_s34b", r"no weights 'laion2b_s34b' .*such as laion2b_s34b_b79k"),
        ("ViT-B-16-SigLIP/webli", "tokenizer is that of .*hf download timm/ViT-B-16-SigLIP"),
        ("google/siglip2-base-patch16-naflex", "variable resolution"),
        ("openai/clip-vit-base-patch33", "nearest: openai/clip-vit-base-patch32"),
        ("ViT-B-33/openai", "nearest: ViT-B-32/openai"),
        ("google/siglip-base-patch16-224", "hf download google/siglip-base-patch16-224"),
        ("ViT-B-32/laion2b_s34b_b79k", "hf download laion/.*model.tower=local-dir:DIR"),
        ("EMPTY", "neither config.json nor open_clip_config.json"),
        ("local-dir:NOWHERE", "does not exist"),
        ("BERT", "a 'bert'; expected one of align, altclip"),
        ("NAFLEX", "variable resolution .*siglip2-base-patch16-256"),
    ],
)
def test_towers_that_cannot_be_had(
    tower: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (itr.hub, open_clip_tower):
        monkeypatch.setattr(module, "hub_answers", lambda: False)
    (tmp_path / "empty").mkdir()
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    transformers.Siglip2Config().save_pretrained(tmp_path / "naflex")
    if tower.isupper():
        tower = str(tmp_path / tower.lower())
    with pytest.raises(ConfigError, match=told):
        load_zero_shot({**NODE, "tower": None if tower == "null" else tower}, "cpu")


def test_open_clip_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'itr-suite\[clip\]'"):
        load_zero_shot({**NODE, "tower": "local-dir:anywhere"}, "cpu")


def test_weights_sizes_and_checkpoints_that_do_not_fit(
    towers: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path, world: Path
) -> None:
    bare = shutil.copytree(towers / "clip", tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="model.tower=.*no CLIPModel could be loaded"):
        load_zero_shot({**NODE, "tower": str(bare)}, "cpu")
    for size, told in ((50, "a multiple of 8"), (4, "a multiple of 8")):
        with pytest.raises(ConfigError, match=f"model.size={size}: expected {told}"):
            load_zero_shot({**NODE, "tower": str(towers / "clip"), "size": size}, "cpu")
    with pytest.raises(ConfigError, match="model.pretrained=false"):
        options = {**NODE, "tower": str(towers / "clip"), "pretrained": False}
        load_zero_shot(options, "cpu")
    other = ["model=clip", f"model.tower={towers / 'clip'}", f"model.init={run[0]}"]
    other += ["model.architecture=null", *COMMON, *places(world), f"out={tmp_path / 'other'}"]
    with pytest.raises(CheckpointError, match="a checkpoint of the tower .*model.tower"):
        train(compose("train", other))
    with pytest.raises(ConfigError, match="model.tower=.*cannot change this option"):
        load_checkpoint(run[0], {"name": "clip", "tower": "another"})
