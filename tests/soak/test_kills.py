"""What takes minutes: many kills, ranks that die or hang, signals, launchers from outside."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY
from tests.soak.runs import (
    ENVIRONMENT,
    assert_equal,
    finish,
    kill_often,
    start,
    values,
    wait_for,
    workers,
)
from tests.training.sizes import overrides

pytestmark = pytest.mark.soak
KILLS = 20


@pytest.fixture
def common(world: Path) -> list[str]:
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    return [*TINY, *places, "trainer.epochs=40", "trainer.checkpoint_every=7"]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_survives_many_kills(devices: int, common: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*common, f"devices={devices}"]
    finish(start([*arguments, f"out={whole}"]))
    count = kill_often(arguments, killed, KILLS, random.Random(devices))
    assert count >= KILLS // 2, f"only {count} kills; make the run longer"
    finish(start([*arguments, f"out={killed}", "resume=auto"]))
    assert_equal(whole, killed)


def test_a_rank_that_dies_is_named(common: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start([*common, f"out={run}", "devices=2"])
    wait_for(run / "metrics.jsonl", '"step": 6', process)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    printed = finish(process, code=2)
    assert "died of SIGKILL" in printed or "(process" in printed
    assert "after update" in printed and "resume=auto" in printed
    finish(start([*common, f"out={run}", "devices=2", "resume=auto"]))


def test_a_rank_that_hangs_is_named(common: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start([*common, f"out={run}", "devices=2", "runtime.collective_timeout=60"])
    wait_for(run / "metrics.jsonl", '"step": 6', process)
    os.kill(workers(process.pid)[1], signal.SIGSTOP)
    printed = finish(process, code=2)
    assert "rank 0, after update" in printed and "collective_timeout=60" in printed
    assert "rank 1 (process" in printed and "stopped) last finished update" in printed


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_saves_and_ends(
    devices: int, number: int, code: int, common: list[str], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [*common, "trainer.epochs=10", f"devices={devices}"]
    finish(start([*arguments, f"out={whole}"]))
    process = start([*arguments, f"out={cut}"])
    wait_for(cut / "metrics.jsonl", '"step": 6', process)
    process.send_signal(number)
    assert "the run is saved: go on with resume=auto" in finish(process, code=code)
    finish(start([*arguments, f"out={cut}", "resume=auto"]))
    assert_equal(whole, cut)


def test_a_second_interrupt_stops_at_once(common: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start([*common, f"out={run}", "devices=2"])
    wait_for(run / "metrics.jsonl", '"step": 6', process)
    ranks = workers(process.pid)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert "resume=auto" in finish(process, code=130)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_multirun_on_two_devices(world: Path, tmp_path: Path) -> None:
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    shared = [
        "data.prepare.train=60",
        "data.prepare.val=20",
        "data.prepare.test=20",
        "batch_size=20",
        "trainer.max_steps=4",
        "device=cpu",
    ]
    printed = finish(start(["-m", "model=hrem,user", "devices=2", *shared, *places], cwd=tmp_path))
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name.split("-")[0] for run in runs] == ["hrem", "user"]
    assert [len(list((run / "wandb").glob("offline-run-*"))) for run in runs] == [1, 1]
    assert all((run / "results.json").is_file() and run.name[:12] in printed for run in runs)


def test_torchrun_from_outside(world: Path, tmp_path: Path) -> None:
    arguments = overrides("vse", world, "batch_size=20", "trainer.max_steps=4")
    for name, launcher in (
        ("outside", [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]),
        ("inside", [sys.executable]),
    ):
        devices = ["devices=2"] if name == "inside" else []
        done = subprocess.run(
            [*launcher, str(ROOT / "train.py"), *arguments, *devices, f"out={tmp_path / name}"],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
    assert_equal(tmp_path / "outside", tmp_path / "inside")


@pytest.mark.parametrize("model", ["vse", "albef"])
def test_compiled_towers_train_alike(model: str, world: Path, tmp_path: Path) -> None:
    from tests.training.sizes import CALM

    given = overrides(model, world, *CALM[model], "batch_size=20", "trainer.max_steps=6")
    losses = {}
    for switch in ("false", "true"):
        run = tmp_path / switch
        log_every = ["trainer.log_every=1", f"runtime.compile={switch}", f"out={run}"]
        finish(start([*given, *log_every]))
        losses[switch] = [line["train/loss"] for line in values(run) if "train/loss" in line]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
