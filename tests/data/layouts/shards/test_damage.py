"""Undecodable images in tars: left out, counted over all ranks, cached."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from itr.data.loading.substitute import replace_broken
from itr.data.records import Record, Split
from itr.errors import ConfigError, DataError
from itr.jobs.assemble import assemble_run
from itr.jobs.evaluate import evaluate
from itr.jobs.train import train
from itr.training.config import check_config
from tests.conftest import compose
from tests.data import worlds

SMALL = ("model=alip", "data=yfcc", "data.held_out=0", "recipe=alip_scenes_retrieval",
         "data.second_text=null", "model.embed_size=16", "model.image.size=32",
         "model.text.depth=1", "model.image.width=8", "batch_size=4", "trainer.log_every=1",
         "tracker=none", "device=cpu", "runtime.estimate=false")  # fmt: skip


def corrupted(jpeg: bytes) -> bytes:
    """A JPEG with valid first and last bytes that cannot be decoded."""
    return jpeg[:20] + bytes(len(jpeg) - 40) + jpeg[-20:]


@pytest.fixture
def root(tmp_path):
    """12 training images, 4 of val and 4 of test; the third of each cannot be decoded."""
    items = worlds.make_items((12, 4, 4))
    for number in (2, 14, 18):
        items[number] = dataclasses.replace(items[number], jpeg=corrupted(items[number].jpeg))
    worlds.write("shards", tmp_path, items)
    return tmp_path


def run_of(root, *more):
    options = (f"data.shards={root / 'wds'}", f"data.cache={root / 'cache'}")
    return compose("train", [*SMALL, *options, f"out={root / 'run'}", *more])


def logged(root):
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line.get("train/broken_images", 0) for line in lines if "train/loss" in line]


def test_undecodable_images_are_left_out_and_counted(root):
    results = train(run_of(root, "data.max_broken=0.3", "trainer.max_steps=6"))
    counts = logged(root)
    assert results["broken_images"] == 1 and counts[-1] == 1 and sorted(counts) == counts
    assert results["test/n_images"] == 3
    log = " ".join((root / "run" / "train.log").read_text().split())
    for part in ("val", "test"):
        assert f"{part}: left out: 1 images that cannot be decoded: " in log
    again = evaluate(compose("eval", [f"checkpoint={root / 'run'}", "device=cpu"]))
    assert again["test/n_images"] == 3 and again["test/rsum"] == results["test/rsum"]


def test_too_many_are_refused(root):
    values = run_of(root, "data.max_broken=0.2")
    with pytest.raises(DataError, match=r"split val: 1 of 4 .*00001.tar.*a larger data.max_broken"):
        assemble_run(check_config(values), values)


def test_more_readers_than_tars_are_refused_before_indexing(root):
    values = run_of(root, "runtime.num_workers=7")
    with pytest.raises(ConfigError, match="6 shards for 1 devices x 7 workers = 7 readers"):
        assemble_run(check_config(values), values)
    assert not list(root.glob("cache/shard-*"))


def test_replacements_add_no_repetition():
    records = [Record(n, f"{n}.jpg", ("a", "b"), (2 * n, 2 * n + 1)) for n in range(9)]
    split = Split("train", "table", records)
    drawn = np.array([4, 5, 6, 16, 8, 17, 10, 0])  # images 2 2 3 8 4 8 5 0
    captions, gone = replace_broken(split, drawn, slice(0, 4), {2, 8, 6, 5})
    assert gone == [2, 8]
    assert captions.tolist() == [14, 14, 6, 2, 8, 17, 10, 0]  # rows of other ranks do not change
    full = np.arange(0, 18, 2)
    captions, gone = replace_broken(split, full, slice(0, 9), {2, 3})
    assert gone == [2, 3] and (captions // 2).tolist() == [0, 1, 4, 4, 4, 5, 6, 7, 8]
