"""The configuration: every recipe composes, every mistake stops with the name and the mend."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from itr.data.layouts.shards.samples import ShardSamples
from itr.data.packed_strings import PackedStrings
from itr.data.records import Record, Split
from itr.errors import ConfigError
from itr.jobs.run_dir import config_hash, identity
from itr.models.build import NO_LOSS, model_class
from itr.training.config import check_config, check_workers
from itr.training.process_setup import (
    MAX_AUTO_WORKERS,
    MAX_REGION_WORKERS,
    resolve_num_workers,
)
from tests.conftest import CONF, compose

RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))
# Those with a default fit any model's slots; a model's own names its slots.
LOSSES = ["hrem"] + sorted(
    path.stem for path in (CONF / "loss").glob("*.yaml") if "\ndefault:" in path.read_text()
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_picked_by_its_triple_and_passes_the_checks(recipe: str) -> None:
    model, *data, task = recipe.split("_")
    values = compose("train", [f"model={model}", f"data={'_'.join(data)}", f"task={task}"])
    config = check_config(values)
    assert config.recipe.name == recipe
    assert config.loss.name == (model if model_class(values["model"]).slot_names else NO_LOSS)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_replaces_the_whole_node_and_keeps_the_weights(loss: str) -> None:
    values = compose("train", [f"loss={loss}"])
    config = check_config(values)
    assert config.loss.name == loss
    assert config.loss.weights == {"base": 1.0, "cross": 1.0, "graph": 1.0, "reg": 10.0}


def test_overrides_win_over_the_recipe() -> None:
    values = compose("train", ["data=coco", "batch_size=7", "model.graph.mask_weight=0.5"])
    config = check_config(values)
    assert (config.batch_size, config.model["graph"]["mask_weight"]) == (7, 0.5)
    assert config.model["cutoff"] == 1.9  # the rest of the recipe stays
    assert values["loss"]["slots"]["base"]["cutoff"] == 1.9  # and the loss reads it


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("+trainer.epoch=3", "trainer.epoch: unknown key; nearest: epochs"),
        ("+model.graph.topkk=3", "model.graph.topkk: unknown key; nearest: topk"),
        ("+loss.slots.base.marginn=1", "loss.slots.base.marginn: unknown key; nearest: margin"),
        ("+loss.weights.grph=1", "loss.weights.grph: HREM has no such term; nearest: graph"),
        ("+loss.slots.itc=null", "loss.slots.itc: HREM has no such slot"),
        ("trainer.epochs=many", "trainer.epochs"),
        ("batch_size=0", "batch_size=0: expected at least 1"),
        ("precision=fp8", "precision=fp8: expected one of auto, fp32"),
        ("optim.schedule.kind=exponential", "optim.schedule.kind=exponential: expected one of"),
        ("optim.schedule.milestones=[9,3]", "optim.schedule.milestones"),
        ("devices=0", "devices=0: expected at least 1"),
        ("devices=7", "devices .7.; pass batch_size="),
        ("model._target_=os.system", "os.system"),
        ("loss.slots.base._target_=itr.clock.Clock", "is not a ScoreLoss"),
        ("resume=yes", "resume"),
    ],
)
def test_a_mistake_is_named(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + named.replace("(", r"\(")):
        check_config(compose("train", [override]))


def test_all_unknown_keys_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(compose("train", ["+trainer.epoch=3", "+optim.learning_rate=1"]))
    assert "trainer.epoch" in str(caught.value) and "optim.learning_rate" in str(caught.value)


def test_a_loss_on_dot_products_that_needs_cosines_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs cosine similarities.*model.normalize_images=true"):
        check_config(compose("train", ["model.normalize_images=false"]))


def test_the_hash_names_what_decides_the_numbers_and_nothing_else() -> None:
    base = config_hash(compose("train", []))
    for same in ("out=x", "device=cpu", "tracker=none", "runtime.num_workers=3", "data.root=y"):
        assert config_hash(compose("train", [same])) == base, same
    for same in (
        "runtime.cache_on_device=fp32",
        "trainer.checkpoint_minutes=1",
        "runtime.compile=true",
    ):
        assert config_hash(compose("train", [same])) == base, same
    for other in ("runtime.cache_on_device=fp16", "runtime.sync_batchnorm=false"):
        assert config_hash(compose("train", [other])) != base, other
    for other in ("seed=1", "model.graph.topk=3", "loss=infonce", "batch_size=8"):
        assert config_hash(compose("train", [other])) != base, other
    assert "runtime.num_workers" not in identity(compose("train", []))


def test_files_that_were_moved_are_the_same_run_and_other_files_another() -> None:
    def hashed(key: str, value: str | None) -> str:
        values = compose("train", [])
        values["data"][key] = value
        return config_hash(values)

    for key in ("shards", "train", "val", "test", "second_text", "noise_file"):
        assert hashed(key, "/a/b/x.tar") == hashed(key, "/c/x.tar") != hashed(key, "/c/y.tar")
    assert hashed("shards", "/a/wds") == hashed("shards", "/b/tars") == hashed("shards", None)
    assert hashed("second_text", "other_caption") != hashed("second_text", None)


def test_workers_of_their_own_accord() -> None:
    """On a GPU pictures get the cores of the rank, and no more readers than there are tars."""
    cores = min(len(os.sched_getaffinity(0)), MAX_AUTO_WORKERS)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    record = Record(0, "a.jpg", ("a",), (0,))
    pictures = Split("train", "karpathy", [record])
    regions = Split("train", "precomp", [record], regions=np.zeros((1, 2, 3), np.float32))
    assert resolve_num_workers("auto", pictures, cuda) == cores
    assert resolve_num_workers("auto", regions, cuda) == min(cores, MAX_REGION_WORKERS)
    assert [resolve_num_workers("auto", split, cpu) for split in (pictures, regions)] == [0, 0]
    assert [resolve_num_workers(3, pictures, cpu), resolve_num_workers(0, pictures, cuda)] == [3, 0]
    none = PackedStrings.of([""])
    one = np.zeros(1, np.int64)
    samples = ShardSamples(
        ["a.tar"], one, np.zeros((1, 2), np.int64), one, one > 0, one + 1, one, *[none] * 4
    )
    assert resolve_num_workers("auto", Split("train", "shards", samples), cuda) == 1
    for wrong in ("many", -1):
        with pytest.raises(ConfigError, match=f"runtime.num_workers={wrong}: expected auto"):
            check_workers(wrong)
    assert compose("train", [])["runtime"]["num_workers"] == "auto"
    assert check_config(compose("train", ["runtime.num_workers=3"])).runtime.num_workers == 3
