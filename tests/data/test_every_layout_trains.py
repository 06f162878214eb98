"""Every method trains a few steps and is evaluated on every layout that it can read."""

from pathlib import Path

import pytest

from itr.jobs.train import train
from tests.conftest import compose
from tests.data import worlds
from tests.data.worlds import PIXEL_LAYOUTS, make_items

SMALL = {
    "hrem": ("model.embed_size=16", "model.graph.warmup=1"),
    "user": ("model.embed_size=16", "model.regions=6", "model.queue_size=16"),
    "vse": ("model.embed_size=16",),
    "alip": ("model.embed_size=16", "model.image.size=32", "model.text.depth=1"),
    "albef": ("model.image.size=24", "model.image.depth=1", "model.text.depth=2",
              "model.text.fusion_layer=1", "model.queue_size=24"),
    "multisea": ("model.image.size=32", "model.image.depth=1", "model.itm_depths=[0]",
                 "model.aformer.depth=1", "model.text.depth=1"),
}  # fmt: skip
SIZES = ("model.text.width=16", "model.text.mlp_width=16",
         "model.text.depth=1", "model.text.heads=2")  # fmt: skip
REGIONS = ("hrem", "user", "vse")
CASES = [(model, "precomp") for model in REGIONS] + [
    (model, layout) for model in SMALL if model not in REGIONS for layout in PIXEL_LAYOUTS
]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """The dataset in every layout, one folder each."""
    folder = tmp_path_factory.mktemp("layouts")
    for layout in (*PIXEL_LAYOUTS, "precomp"):
        items = make_items((8, 4, 4), captions=5 if layout == "precomp" else None)
        worlds.write(layout, folder / layout, items)
    return folder


@pytest.mark.parametrize("model, layout", CASES)
def test_trains(here, tmp_path, model, layout):
    root = here / layout
    arguments = [
        f"model={model}",
        "data=coco",
        f"recipe={model}_scenes_retrieval",
        f"data.root={root}",
        f"data.cache={here / 'cache'}",
        "data.protocols=[full]",
        f"out={tmp_path / 'run'}",
        "batch_size=4",
        "trainer.max_steps=2",
        "trainer.validate_every=2",
        "tracker=none",
        "device=cpu",
        "runtime.estimate=false",
        *(SIZES if model in REGIONS else ()),
        *SMALL[model],
    ]
    if layout == "table":
        arguments += ["data=table", f"data.train={root / 'pairs.csv'}"]
    if layout in ("table", "shards", "folder") and model == "alip":
        arguments.append("data.second_text=null")
    results = train(compose("train", arguments))
    assert results["updates"] == 2 and results["test/rsum"] > 0
    log = " ".join((tmp_path / "run" / "train.log").read_text().split())
    assert f"8 images, {40 if layout == 'precomp' else 29} captions, {layout} layout" in log
