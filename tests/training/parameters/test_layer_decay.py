"""Layer-wise learning rates: the factor of every layer, against tables, and what a run says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from itr.errors import ConfigError
from itr.jobs.train import train
from itr.models.base import Model
from itr.training.config import check_config
from itr.training.optim import build_optimizer
from itr.training.parameters.layer_decay import layer_scales
from tests.conftest import compose
from tests.models.test_adapters import clip_of
from tests.models.tiny import build
from tests.nn.tiny_towers import save_open_clip
from tests.training.sizes import overrides

# For a decay of 0.5; a model in which each tower has two blocks, unless a line says otherwise.
TABLES = {
    "clip": {
        "tower.vision_model.embeddings.patch_embedding.weight": 0.125,
        "tower.vision_model.pre_layrnorm.weight": 0.125,
        "tower.vision_model.encoder.layers.0.mlp.fc1.weight": 0.25,
        "tower.vision_model.encoder.layers.1.layer_norm1.bias": 0.5,
        "tower.vision_model.post_layernorm.weight": 1.0,
        "tower.visual_projection.weight": 1.0,
        "tower.text_model.embeddings.token_embedding.weight": 0.25,  # of one block
        "tower.text_model.encoder.layers.0.self_attn.q_proj.weight": 0.5,
        "tower.text_projection.weight": 1.0,
        "tower.logit_scale": 1.0,
    },
    "blip": {
        "tower.vision_model.embeddings.class_embedding": 0.125,
        "tower.vision_model.encoder.layers.0.mlp.fc1.weight": 0.25,
        "tower.text_encoder.embeddings.word_embeddings.weight": 0.125,
        "tower.text_encoder.encoder.layer.1.crossattention.self.key.weight": 0.5,
        "tower.itm_head.weight": 1.0,
        "temperature": 1.0,
    },
    "albef": {  # BERT's four layers are two of text and two of fusion
        "vision.cls_token": 0.125,
        "vision.pos_embed": 0.125,
        "vision.blocks.0.attn.qkv.weight": 0.25,
        "vision.blocks.1.attn.qkv.weight": 0.5,
        "vision.norm.weight": 1.0,
        "text.embeddings.word_embeddings.weight": 0.03125,
        "text.encoder.layer.0.output.dense.weight": 0.0625,
        "text.encoder.layer.1.output.dense.weight": 0.125,
        "fusion.layers.0.words.query.weight": 0.25,
        "fusion.layers.1.image.key.weight": 0.5,
        "itm_head.weight": 1.0,
        "vision_proj.weight": 1.0,
    },
    "alip": {
        "images.class_embedding": 0.125,
        "images.conv1.weight": 0.125,
        "images.transformer.resblocks.0.attn.in_proj_weight": 0.25,
        "images.transformer.resblocks.1.attn.in_proj_weight": 0.5,
        "images.proj": 1.0,
        "texts.token_embedding.weight": 0.125,
        "texts.positional_embedding": 0.125,
        "texts.transformer.resblocks.0.mlp.c_fc.weight": 0.25,
        "texts.ln_final.weight": 1.0,
        "logit_scale": 1.0,
    },
    "hrem": {  # BERT of one layer; the graph and the regions are no pre-trained tower
        "texts.bert.embeddings.word_embeddings.weight": 0.25,
        "texts.bert.encoder.layer.0.output.dense.weight": 0.5,
        "texts.project.weight": 1.0,
        "graph.layers.0.expand.weight": 1.0,
        "images.project.weight": 1.0,
    },
    "multisea": {  # three blocks of CLIP, one of RoBERTa
        "images.tower.ln_pre.weight": 0.0625,
        "images.tower.transformer.resblocks.0.ln_1.weight": 0.125,
        "images.tower.transformer.resblocks.2.ln_1.weight": 0.5,
        "texts.roberta.embeddings.word_embeddings.weight": 0.25,
        "texts.roberta.encoder.layer.0.output.dense.weight": 0.5,
        "aformer.image.0.cross.key.weight": 1.0,
    },
}


def assert_scales(model: Model, table: dict[str, float]) -> None:
    names, scales = {name for name, _ in model.named_parameters()}, layer_scales(model, 0.5)
    assert {name: scales.get(name, 1.0) for name in table if name in names} == table


@pytest.mark.parametrize("name", TABLES)
def test_the_factors_are_those_of_the_table(name: str) -> None:
    assert_scales(build(name), TABLES[name])


def test_the_factors_of_a_tower_of_open_clip(tmp_path: Path) -> None:
    save_open_clip("clip", tmp_path)
    model = clip_of(f"local-dir:{tmp_path / 'open_clip_clip'}")
    table = {
        "tower.visual.conv1.weight": 0.125,
        "tower.visual.transformer.resblocks.0.ln_1.weight": 0.25,
        "tower.visual.proj": 1.0,
        "tower.positional_embedding": 0.125,
        "tower.token_embedding.weight": 0.125,
        "tower.transformer.resblocks.1.attn.in_proj_weight": 0.5,
        "tower.text_projection": 1.0,
        "tower.logit_scale": 1.0,
    }
    assert_scales(model, table)


def test_every_group_learns_at_its_factor_of_the_models_rate() -> None:
    model = build("user")
    config = check_config(compose("train", ["model=user", "optim.layer_decay=0.5"])).optim
    factor, scales = model.config.bert_lr_factor, layer_scales(model, 0.5)
    decayed = build_optimizer(model, config)
    plain = build_optimizer(model, dataclasses.replace(config, layer_decay=None))
    rates = {name: group["base_lr"] for group in plain.param_groups for name in group["names"]}
    assert rates["texts.bert.encoder.layer.0.output.dense.weight"] == config.lr * factor
    seen = []
    for group in decayed.param_groups:
        for name in group["names"]:
            assert group["base_lr"] == pytest.approx(rates[name] * scales.get(name, 1.0)), name
            seen.append(name)
    assert sorted(seen) == sorted(rates)


def test_a_run_says_its_rates_and_refuses_a_model_without_blocks(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*overrides("vse", world, "batch_size=20", "trainer.max_steps=1")]
    given += ["optim.layer_decay=0.5", "optim.lr=0.001", "model.bert_lr_factor=0.1"]
    train(compose("train", [*given, f"out={tmp_path / 'run'}"]))
    log = (tmp_path / "run" / "train.log").read_text()
    assert "optim.layer_decay=0.5: " in log and "from 2.5e-05 to 0.001" in log
    model = type(build("vse"))
    monkeypatch.setattr(model, "pretrained_towers", lambda self: (("images",),))
    with pytest.raises(ConfigError, match="layer_decay=0.5: VSE has no numbered blocks in images"):
        train(compose("train", [*given, f"out={tmp_path / 'refused'}"]))
    assert not (tmp_path / "refused").exists()
    with pytest.raises(ConfigError, match="layer_decay=2: expected above 0 and at most 1"):
        check_config(compose("train", ["optim.layer_decay=2"]))
