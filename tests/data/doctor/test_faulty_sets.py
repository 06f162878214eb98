"""Faulty data sets: the doctor names file and fault, and training says the same before a step.

Either it refuses, or it leaves out what is broken, says so and trains on the rest.
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
from itr.data.layouts.precomp import check_regions_finite, open_regions, read_captions
from itr.data.layouts.registry import DataConfig, open_split
from itr.errors import DataError
from itr.jobs.assemble import assemble_run
from itr.jobs.train import train
from itr.training.config import check_config
from tests.conftest import compose
from tests.data import worlds
from tests.data.faults import FAULTS, REFUSED, WARNED, same_bytes

pytestmark = pytest.mark.usefixtures("in_time")  # nothing hangs

SIZES = {
    "hrem": ("model.embed_size=16", "model.graph.warmup=1", "model.text.width=16",
             "model.text.mlp_width=16", "model.text.depth=1",
             "model.text.heads=2"),
    "alip": ("model.embed_size=16", "model.image.size=32", "model.text.depth=1",
             "model.image.width=8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The world without a fault, in the layouts that are spoilt."""
    folder = tmp_path_factory.mktemp("sound")
    for layout in (*worlds.PIXEL_LAYOUTS, "precomp"):
        items = worlds.make_items((8, 4, 3), captions=5 if layout == "precomp" else None)
        worlds.write(layout, folder / layout, items)
    return folder


@pytest.fixture(scope="module")
def configurations():
    """Of a run of two steps, by model: composed once."""
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


def examined(capsys, root, *options):
    """Exit code and report of the doctor."""
    code = main([f"data.root={root}", "--json", *options])
    report = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == code
    return code, report


def log_of(out) -> str:
    return " ".join((out / "run" / "train.log").read_text().split())


@pytest.mark.parametrize("layout", [*worlds.PIXEL_LAYOUTS, "precomp"])
def test_a_sound_set_is_clean(sound, tmp_path, capsys, layout):
    code, report = examined(capsys, sound / layout, f"data.cache={tmp_path}")
    assert code == 0, report["findings"]
    parts = {split["split"]: split["images"] for split in report["splits"]}
    assert list(parts.values()) == [8, 4, 3]
    assert len({split["hash"] for split in report["splits"]}) == 3


@pytest.mark.parametrize("name", FAULTS)
def test_the_doctor_names_it_and_training_does_as_it_says(
    sound, configurations, tmp_path, capsys, name
):
    fault = FAULTS[name]
    root = tmp_path / "set"
    shutil.copytree(sound / fault.layout, root)
    fault.spoil(root)
    code, report = examined(capsys, root, f"data.cache={tmp_path / 'c'}", *fault.options)
    assert code == fault.level, report["findings"]
    level = {WARNED: "warning", REFUSED: "refused"}[fault.level]
    said = [f["message"] for f in report["findings"] if f["level"] == level]
    assert any(all(word in message for word in fault.words) for message in said), said

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
    if fault.layout == "karpathy" and "split" not in name:  # found by looking, not by reading
        assert f"{8 - fault.kept} of 8 pictures are broken and left out" in log
    else:
        assert f"train: {fault.kept} images" in log


def test_a_cache_that_cannot_be_used_stops_nothing(sound, tmp_path):
    """What is kept of pictures and regions: damaged, or in a place where nothing can be written."""
    data = DataConfig("coco", str(sound / "karpathy"))
    split = open_split(data, "val", "pixels")
    require_decodable(split, tmp_path)
    (kept,) = tmp_path.iterdir()
    for damage in (b"{", b"[1]", b'{"a": 1}'):
        kept.write_bytes(damage)
        require_decodable(split, tmp_path)
        assert kept.read_bytes() == b"{}"
    kept.write_bytes(b'{"0": "a fault"}')
    with pytest.raises(DataError, match="a fault"):  # it is read
        require_decodable(split, tmp_path)
    other = dataclasses.replace(split, decoder="pillow")  # whose faults are its own
    require_decodable(other, tmp_path)
    kept.unlink()
    kept.mkdir()  # neither read nor replaced
    require_decodable(split, tmp_path)
    (tmp_path / "file").write_text("")
    regions = open_split(
        DataConfig("coco", str(sound / "precomp"), splits={"val": "dev"}), "val", "regions"
    )
    for check, found in ((require_decodable, split), (check_regions_finite, regions)):
        check(found, tmp_path / "file" / "cache")


def test_files_that_cannot_be_read_are_named(tmp_path):
    """A folder in place of a file fails as a file without the right to read it does."""
    for read in (load_json, read_captions, open_regions):
        with pytest.raises(DataError, match=rf"{tmp_path}: cannot be read \("):
            read(tmp_path)


def test_the_same_picture_under_another_name_is_a_leak(sound, tmp_path, capsys):
    root = tmp_path / "set"
    shutil.copytree(sound / "karpathy", root)
    same_bytes(root)
    code, report = examined(capsys, root)
    (leak,) = [f for f in report["findings"] if f["level"] == "warning"]
    assert (
        code == 1 and leak["split"] == "train/val" and "1 pictures are in both" in leak["message"]
    )
