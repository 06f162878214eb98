"""Many kills at random moments, with one process and two."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.soak.runs import (
    finish,
    kill_all,
    kill_often,
    start,
    wait_for,
    wait_until,
)
from tests.training.same_run import assert_same_run, logged_values
from tests.training.sizes import NO_DROPOUT, SIZES, overrides

pytestmark = pytest.mark.soak
KILLS = 20
KILLS_OF_A_LIFE = int(os.environ.get("ITR_SOAK_KILLS", "100"))
LENGTH = (
    "batch_size=20",
    "trainer.max_steps=15",
    "trainer.log_every=4",
    "trainer.validate_every=8",
    "trainer.checkpoint_every=3",
    "accumulate=1",
)


@pytest.fixture
def common(world: Path) -> list[str]:
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    return [*TINY, *places, "trainer.epochs=40", "trainer.checkpoint_every=7"]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_survives_many_kills(devices: int, common: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*common, f"devices={devices}", "runtime.eval_batch_size=4"]
    finish(start([*arguments, f"out={whole}"]))
    metrics = killed / "metrics.jsonl"
    kill_often(arguments, killed, KILLS, random.Random(devices))
    process = start([*arguments, f"out={killed}", "resume=auto"])
    updates = logged_values(whole)[-1]["step"]
    wait_until(lambda: any("val/rsum" in line for line in values_at(metrics, updates)), process)
    kill_all(process)  # in the last checkpoint or the evaluation of the test split
    assert not (killed / "results.json").exists()
    finish(start([*arguments, f"out={killed}", "resume=auto"]))
    assert_same_run(whole, killed)
    left = [path.name for path in (killed / "checkpoints").iterdir()]
    assert sorted(left) == ["best.safetensors", "last.safetensors", "previous.safetensors"]


@pytest.mark.parametrize("devices", [1, 2])
def test_kills_at_any_moment_of_a_life(devices: int, world: Path, tmp_path: Path) -> None:
    """From the first import to the last file; a run that ends in between begins anew."""
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    arguments = [*TINY, *places, "trainer.epochs=6", "trainer.checkpoint_every=2"]
    arguments += [f"devices={devices}", "runtime.eval_batch_size=4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    finish(start([*arguments, f"out={whole}"]))
    life, chance = time.monotonic() - began, random.Random(devices)
    kills = 0
    while kills < KILLS_OF_A_LIFE:
        process = start([*arguments, f"out={killed}", "resume=auto"])
        try:
            process.wait(chance.uniform(0.0, 1.1 * life))
        except subprocess.TimeoutExpired:
            kill_all(process)
            kills += 1
            continue
        finish(process)
        assert_same_run(whole, killed)
        shutil.rmtree(killed)
    finish(start([*arguments, f"out={killed}", "resume=auto"]))
    assert_same_run(whole, killed)


def values_at(metrics: Path, step: int) -> list[str]:
    """The lines of ``step``, whole or cut short."""
    if not metrics.is_file():
        return []
    return [line for line in metrics.read_text().splitlines() if f'"step": {step},' in line]


@pytest.mark.parametrize("model", sorted(SIZES))
def test_every_model_goes_on_with_two_processes(model: str, world: Path, tmp_path: Path) -> None:
    given = [*overrides(model, world, *LENGTH), "devices=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start([*given, f"out={whole}"]))
    process = start([*given, f"out={killed}"])
    wait_for(killed / "metrics.jsonl", '"step": 8', process)
    kill_all(process)
    finish(start([*given, f"out={killed}", "resume=auto"]))
    assert json.loads((killed / "results.json").read_text())["resumed_at"] in (6, 8, 9, 12)
    assert_same_run(whole, killed)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("albef", ["grad_cache=5"]),
        ("alip", ["grad_cache=5", "accumulate=2"]),
        ("multisea", ["grad_cache=5"]),
        ("hrem", ["accumulate=2", "trainer.skip_nonfinite=3"]),
        ("vse", ["runtime.sync_batchnorm=false"]),
    ],
)
def test_options_on_two_ranks_go_on_exactly(
    model: str, options: list[str], world: Path, tmp_path: Path
) -> None:
    plain = [word for word in LENGTH if not word.startswith("accumulate")]
    given = [*overrides(model, world, *plain), *options, "devices=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start([*given, f"out={whole}"]))
    process = start([*given, f"out={killed}"])
    wait_for(killed / "metrics.jsonl", '"step": 8', process)
    process.send_signal(signal.SIGTERM)
    finish(process, code=75)
    finish(start([*given, f"out={killed}", "resume=auto"]))
    assert_same_run(whole, killed)


def test_cached_gradients_of_two_ranks_are_those_of_one(world: Path, tmp_path: Path) -> None:
    own = ["model.gather_grad=full", "optim.eps=1e-3", "trainer.max_steps=5", "trainer.log_every=1"]
    given = [*overrides("alip", world, *NO_DROPOUT["alip"], "batch_size=20"), *own]
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start([*given, f"out={one}"]))
    finish(start([*given, "devices=2", "grad_cache=4", f"out={two}"]))
    first, second = (
        [line["train/loss"] for line in logged_values(run) if "train/loss" in line]
        for run in (one, two)
    )
    assert len(first) == 5 and second == pytest.approx(first, rel=1e-5)


def test_another_number_of_devices_goes_on(common: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*common, "trainer.epochs=4", f"out={run}"]
    process = start([*arguments, "devices=2"])
    wait_for(run / "metrics.jsonl", '"step": 9', process)
    process.send_signal(signal.SIGTERM)
    finish(process, code=75)
    printed = finish(start([*arguments, "resume=auto"]))
    assert "was written by 2 processes, and now there are 1" in printed
    assert "the order of the data, the losses and the schedule stay" in printed
    assert json.loads((run / "results.json").read_text())["updates"] == 40


def test_a_full_disk_ends_a_run_that_can_go_on(common: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [*common, "trainer.epochs=4"]
    finish(start([*arguments, f"out={whole}"]))
    best, last = (
        (whole / "checkpoints" / f"{name}.safetensors").stat().st_size for name in ("best", "last")
    )
    # No file may be as large as `last`: the disk is full for it alone.
    limit = f"ulimit -f {(best + last) // 2 // 1024}"
    printed = finish(start([*arguments, f"out={cut}"], shell=limit), code=2)
    assert "could not be saved" in printed and "resume=auto" in printed
    assert not [path for path in (cut / "checkpoints").glob(".*") if path.is_file()]
    finish(start([*arguments, f"out={cut}", "resume=auto"]))
    assert_same_run(whole, cut)


def test_pictures_that_vanish_end_a_run_with_threads(world: Path, tmp_path: Path) -> None:
    given = [
        *overrides("alip", world, "batch_size=20", "trainer.epochs=200"),
        "runtime.num_workers=2",
    ]
    root = tmp_path / "data"
    given = [word for word in given if not word.startswith("data.root=")] + [f"data.root={root}"]
    run = tmp_path / "run"
    process = start([*given, f"out={run}"])
    wait_for(run / "metrics.jsonl", '"step": 20', process)
    for path in sorted(root.rglob("*.jpg")) + sorted(root.rglob("*.png")):
        path.unlink()
    printed = finish(process, code=2)
    assert "error:" in printed and str(root) in printed, printed
    assert not workers_of(run)


def workers_of(run: Path) -> list[int]:
    """Processes that still train in ``run``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"out={run}".encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
