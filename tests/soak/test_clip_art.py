"""A dataset of real clip art with human captions, in every layout.

ITR_CLIPART=DIR is a folder that `build_clipart.py` made; where that script lies in
``../shared/data``, a smaller set is built.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from itr.data.__main__ import main
from itr.data.images.decode import read_bytes
from itr.data.layouts.registry import DataConfig, find_layouts, open_split
from itr.data.records import SEQUENTIAL_ID
from itr.jobs.train import train
from tests.conftest import ROOT, compose
from tests.data.test_every_layout_trains import REGIONS, SIZES, SMALL

pytestmark = pytest.mark.soak
NAME = "openclipart"
BUILDER = ROOT.parent / "shared" / "data" / "build_clipart.py"
PARTS = ("train", "val", "test")
ON_DISK = {"train": "train", "val": "dev", "test": "testall"}  # of the region arrays
LAYOUTS = ("karpathy", "lists", "coco", "arrow", "shards")
TARGETS = {"arrow": "arrow", "shards": "wds", "table": "pairs.jsonl"}
CASES = [(model, "precomp") for model in REGIONS] + [
    (model, layout) for model in SMALL if model not in REGIONS for layout in (*LAYOUTS, "table")
]


@pytest.fixture(scope="module")
def clip_art(tmp_path_factory) -> Path:
    if named := os.environ.get("ITR_CLIPART"):
        return Path(named)
    if not BUILDER.is_file():
        pytest.skip("ITR_CLIPART names no folder, and build_clipart.py is not there")
    folder = tmp_path_factory.mktemp("clip_art")
    subprocess.run([sys.executable, BUILDER, "--out", folder, "--limit", "600"], check=True)
    return folder / NAME


@pytest.fixture(scope="module")
def table(clip_art, tmp_path_factory) -> Path:
    """The set as a table, which its builder does not write."""
    path = tmp_path_factory.mktemp("table") / TARGETS["table"]
    assert main(["convert", str(clip_art), str(path), "--name", NAME]) == 0
    return path


def opened(root, part, **options):
    return open_split(DataConfig(NAME, str(root), **options), part, "pixels")


def seen(split, ids=True):
    """Of each image: its file's name, captions, bytes, and the ids."""
    return [
        (
            Path(str(r.extra.get("file") or r.image)).name,
            r.captions,
            read_bytes(r.image),
            *((r.image_id, r.caption_ids) if ids else ()),
        )
        for r in split.records
    ]


@pytest.mark.parametrize("part", PARTS)
def test_every_layout_gives_the_same_records_in_their_order(clip_art, part):
    assert set(find_layouts(DataConfig(NAME, str(clip_art)))) == {*LAYOUTS, "precomp"}
    found = {layout: opened(clip_art, part, layout=layout) for layout in LAYOUTS[:4]}
    first = seen(found["karpathy"], ids=False)
    assert len({name for name, *_ in first}) == len(first)
    for layout in ("lists", "coco"):
        assert seen(found[layout], ids=False) == first, layout
    # Its builder shuffles this one; a picture's own name says which it is.
    assert sorted(seen(found["arrow"], ids=False)) == sorted(first)
    ids = [record.image_id for record in found["coco"].records]  # Karpathy's count from 0
    assert [record.image_id + 1 for record in found["karpathy"].records] == ids
    if part == "train":
        assert [record.image_id for record in found["lists"].records] == ids
    else:  # evaluation lists hold none
        assert all(SEQUENTIAL_ID in record.extra for record in found["lists"].records)

    splits = {**ON_DISK}
    data = DataConfig(NAME, str(clip_art), splits=splits)
    regions = open_split(data, part, "regions")  # of test, as many as five folds need
    assert regions.n_images > len(first) - 5
    rows = zip(regions.records, found["coco"].records, strict=False)
    for region, picture in rows:
        assert region.image_id == picture.image_id
        assert region.extra["file"] == Path(picture.image).name
        captions = itertools.islice(itertools.cycle(picture.captions), 5)
        assert region.captions == tuple(captions)


@pytest.mark.parametrize("target", ["arrow", "shards", "table"])
def test_converters_go_there_and_back(clip_art, table, tmp_path, target):
    path = table if target == "table" else tmp_path / TARGETS[target]
    if target != "table":
        assert main(["convert", str(clip_art), str(path), "--name", NAME]) == 0
    back = tmp_path / "back" / f"dataset_{NAME}.json"
    assert main(["convert", str(path), str(back)]) == 0
    options = {"train": str(path)} if target == "table" else {"layout": target}
    for part in PARTS:
        first = seen(opened(clip_art, part, layout="karpathy"))
        for other in (opened(path, part, **options), opened(back.parent, part, layout="karpathy")):
            assert seen(other) == first


def test_regions_name_their_pictures(clip_art, tmp_path):
    path = tmp_path / "pairs.csv"
    source = str(clip_art / f"{NAME}_precomp")
    assert main(["convert", source, str(path), "--images", str(clip_art / "images")]) == 0
    for part in PARTS:
        first = seen(opened(clip_art, part, layout="coco"), ids=False)
        rows = seen(opened("", part, train=str(path)), ids=False)
        assert len(rows) > len(first) - 5
        for (name, texts, image), (other, captions, same) in zip(rows, first, strict=False):
            assert (name, image) == (other, same) and set(texts) <= set(captions)


@pytest.mark.parametrize("model, layout", CASES)
def test_every_method_trains(clip_art, table, tmp_path, model, layout):
    overrides = [
        f"model={model}", "data=coco", f"recipe={model}_scenes_retrieval", f"data.name={NAME}",
        f"data.root={clip_art}", f"data.layout={layout}", "data.protocols=[full]",
        f"data.cache={table.parent / 'cache'}", f"out={tmp_path / 'run'}", "batch_size=8",
        "trainer.max_steps=2", "trainer.validate_every=2", "tracker=none", "device=cpu",
        *(SIZES if model in REGIONS else ()), *SMALL[model],
    ]  # fmt: skip
    if layout == "precomp":  # of 36 regions, not of the tiny world's 6
        overrides = [override for override in overrides if not override.startswith("model.regions")]
    if layout == "shards":  # which hold training samples alone
        overrides.append("data.held_out=300")
    if layout == "table":
        overrides.append(f"data.train={table}")
    if layout == "shards" and model == "alip":
        overrides.append("data.second_text=null")  # they have one inside
    results = train(compose("train", overrides))
    assert results["updates"] == 2 and np.isfinite(results["test/rsum"])
    assert f"{layout} layout" in " ".join((tmp_path / "run" / "train.log").read_text().split())


def test_the_doctor_finds_it_sound(clip_art, capsys):
    code = main(["check", f"data.root={clip_art}", f"data.name={NAME}", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == report["exit_code"] == 0, report["findings"]
    layouts = [entry["layout"] for entry in report["splits"]]
    assert [layout for layout, _ in itertools.groupby(layouts)] == ["precomp", *LAYOUTS]
