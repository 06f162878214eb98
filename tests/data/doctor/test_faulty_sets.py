"""Faulty datasets: `itr data check` names the file and the fault, and training agrees.

Training either refuses before the first step, or logs the fault and trains on the rest.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import pytest

from itr.data.checks.decodable import require_decodable
from itr.data.doctor.cli import main
from itr.data.layouts.json_annotations import load_json
from itr.data.layouts.precomp import read_captions
from itr.data.layouts.region_arrays import check_regions_finite, open_regions
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import DataError
from itr.jobs.assemble import assemble_run
from itr.jobs.train import train
from itr.training.config import check_config
from tests.conftest import compose
from tests.data import worlds
from tests.data.faults import FAULTS, REFUSED, WARNED, same_bytes

pytestmark = pytest.mark.usefixtures("in_time")  # fails instead of hanging

SIZES = {
    "hrem": ("model.embed_size=16", "model.graph.warmup=1", "model.text.width=16",
             "model.text.mlp_width=16", "model.text.depth=1",
             "model.text.heads=2"),
    "alip": ("model.embed_size=16", "model.image.size=32", "model.text.depth=1",
             "model.image.width=8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The dataset without a fault, in every layout."""
    folder = tmp_path_factory.mktemp("clean")
    for layout in (*worlds.PIXEL_LAYOUTS, "precomp"):
        items = worlds.make_items((8, 4, 3), captions=5 if layout == "precomp" else None)
        worlds.write(layout, folder / layout, items)
    return folder


@pytest.fixture(scope="module")
def configurations():
    """The configuration of a run of two steps, by model."""
    return {
        model: compose("train", [
            f"model={model}", "data=coco", f"recipe={model}_scenes_retrieval", "batch_size=4",
            "data.protocols=[full]", "trainer.max_steps=2", "trainer.validate_every=2",
            "trainer.log_every=1", "tracker=none", "device=cpu", *sizes,
        ])
        for model, sizes in SIZES.items()
    }  # fmt: skip


def run_of(configurations, layout, root, out, options=()):
    """The configuration of a run on ``root``."""
    values = copy.deepcopy(configurations["hrem" if layout == "precomp" else "alip"])
    values |= {"out": str(out / "run")}
    values["data"] |= {"root": str(root), "cache": str(out / "cache")}
    if layout == "shards":
        values["data"]["second_text"] = None
    for option in options:
        key, value = option.removeprefix("data.").split("=")
        values["data"][key] = float(value)
    return values


def check_folder(capsys, root, *options):
    """Exit code and report of `itr data check`."""
    code = main([f"data.root={root}", "--json", *options])
    report = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == code
    return code, report


def log_of(out) -> str:
    return " ".join((out / "run" / "train.log").read_text().split())


@pytest.mark.parametrize("layout", [*worlds.PIXEL_LAYOUTS, "precomp"])
def test_the_clean_dataset_has_no_findings(clean, tmp_path, capsys, layout):
    code, report = check_folder(capsys, clean / layout, f"data.cache={tmp_path}")
    assert code == 0, report["findings"]
    sizes = {split["split"]: split["images"] for split in report["splits"]}
    assert list(sizes.values()) == [8, 4, 3]
    assert len({split["hash"] for split in report["splits"]}) == 3


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported_and_training_agrees(clean, configurations, tmp_path, capsys, name):
    fault = FAULTS[name]
    root = tmp_path / "set"
    shutil.copytree(clean / fault.layout, root)
    fault.corrupt(root)
    code, report = check_folder(capsys, root, f"data.cache={tmp_path / 'c'}", *fault.options)
    assert code == fault.level, report["findings"]
    level = {WARNED: "warning", REFUSED: "refused"}[fault.level]
    messages = [f["message"] for f in report["findings"] if f["level"] == level]
    assert any(all(word in message for word in fault.words) for message in messages), messages

    values = run_of(configurations, fault.layout, root, tmp_path, fault.options)
    if fault.level == REFUSED:
        with pytest.raises(DataError) as refusal:
            assemble_run(check_config(values), values)
        assert all(word in str(refusal.value) for word in fault.words), refusal.value
        return
    results = train(values)
    assert results["updates"] == 2
    log = log_of(tmp_path)
    assert all(word in log for word in fault.words), log
    if (
        fault.layout == "karpathy" and "split" not in name
    ):  # detected by decoding, not by reading annotations
        assert f"{8 - fault.remaining} of 8 images are broken and left out" in log
    else:
        assert f"train: {fault.remaining} images" in log


def test_an_unusable_cache_is_ignored(clean, tmp_path):
    """Cached checks of images and regions: damaged, or in a folder that is not writable."""
    data = DataConfig("coco", str(clean / "karpathy"))
    split = open_split(data, "val", "pixels")
    require_decodable(split, tmp_path)
    (cached,) = tmp_path.iterdir()
    for damage in (b"{", b"[1]", b'{"a": 1}'):
        cached.write_bytes(damage)
        require_decodable(split, tmp_path)
        assert cached.read_bytes() == b"{}"
    cached.write_bytes(b'{"0": "a fault"}')
    with pytest.raises(DataError, match="a fault"):  # the cache is read
        require_decodable(split, tmp_path)
    other = dataclasses.replace(split, decoder="pillow")  # has a cache entry of its own
    require_decodable(other, tmp_path)
    cached.unlink()
    cached.mkdir()  # can be neither read nor replaced
    require_decodable(split, tmp_path)
    (tmp_path / "file").write_text("")
    regions = open_split(
        DataConfig("coco", str(clean / "precomp"), splits={"val": "dev"}), "val", "regions"
    )
    for check, opened in ((require_decodable, split), (check_regions_finite, regions)):
        check(opened, tmp_path / "file" / "cache")


def test_unreadable_files_are_named(tmp_path):
    """A folder in place of a file fails like a file without read permission."""
    for read in (load_json, read_captions, open_regions):
        with pytest.raises(DataError, match=rf"{tmp_path}: cannot be read \("):
            read(tmp_path)


def test_a_copy_under_another_name_is_a_leak(clean, tmp_path, capsys):
    root = tmp_path / "set"
    shutil.copytree(clean / "karpathy", root)
    same_bytes(root)
    code, report = check_folder(capsys, root)
    (leak,) = [f for f in report["findings"] if f["level"] == "warning"]
    assert (
        code == 1
        and leak["split"] == "train/val"
        and "1 images have the same content" in leak["message"]
    )
