"""Shards: 100,000 samples are read exactly once each; a run on shards is killed and resumed."""

import dataclasses
import json

import numpy as np
import pytest

from tests.data import worlds
from tests.data.shard_readers import loader_of, read_epoch, write_shards
from tests.soak.runs import finish, kill_all, start, wait_for
from tests.training.same_run import assert_same_run
from tests.training.sizes import SIZES

SAMPLES, SHARDS, BATCH, SEED = 100_000, 130, 1_000, 7


@pytest.mark.soak
def test_a_hundred_thousand_samples(tmp_path):
    shards = tmp_path / "wds"
    write_shards(shards, SAMPLES, SHARDS)
    loader_of(shards, batch_size=BATCH, seed=SEED)  # indexes the shards for all ranks
    runs = []
    for number, (epoch, kill_at) in enumerate(((0, 0), (1, 20), (1, 0))):
        found, done = read_epoch(shards, tmp_path / f"run{number}", epoch, BATCH, SEED, kill_at)
        assert kill_at <= done < SAMPLES // BATCH
        assert [len(own) for own in found] == [SAMPLES // 2] * 2
        assert sorted(found[0] + found[1]) == list(range(SAMPLES))
        runs.append(np.array(found))
    assert (runs[0] == runs[1]).mean() < 0.001
    assert np.array_equal(runs[1], runs[2])


@pytest.mark.soak
def test_a_run_on_shards_survives_kills(tmp_path):
    """Two ranks with two workers each, and pictures that turn out to be broken on the way."""
    items = worlds.make_items((80, 16, 16))
    for number in (3, 40, 41, 77):
        jpeg = items[number].jpeg
        items[number] = dataclasses.replace(items[number], jpeg=jpeg[:20] + bytes(99) + jpeg[-20:])
    worlds.write_shards(tmp_path, items, size=8)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [
        "model=alip", "data=yfcc", "recipe=alip_scenes_retrieval", *SIZES["alip"],
        f"data.shards={tmp_path / 'wds'}", f"data.cache={tmp_path / 'cache'}", "data.held_out=0",
        "data.second_text=null", "data.max_broken=0.1", "batch_size=16", "trainer.epochs=40",
        "trainer.validate_every=50", "trainer.checkpoint_every=7", "trainer.log_every=3",
        "devices=2", "runtime.num_workers=2", "tracker=none", "device=cpu",
        "runtime.estimate=false",
    ]  # fmt: skip
    finish(start([*arguments, f"out={whole}"]))
    for step in (30, 120):  # some updates after a checkpoint
        process = start([*arguments, f"out={killed}", "resume=auto"])
        wait_for(killed / "metrics.jsonl", f'"step": {step}', process)
        kill_all(process)
    finish(start([*arguments, f"out={killed}", "resume=auto"]))
    assert_same_run(whole, killed)
    results = [json.loads((run / "results.json").read_text()) for run in (whole, killed)]
    assert results[0]["broken_images"] == results[1]["broken_images"] == 4
    assert results[0]["resumed_at"] is None and results[1]["resumed_at"] >= 119
    for key, value in results[0].items():
        assert value == results[1][key] or not key.startswith(("val/", "test/")), key
