"""Ranks that die or hang, signals at random moments, external launchers."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from itr.training.faults.heartbeat import RANKS, read_heartbeats
from tests.conftest import PATIENCE, TINY
from tests.soak.runs import (
    TORCHRUN,
    finish,
    start,
    wait_for,
    wait_until,
    workers,
)
from tests.training.same_run import assert_same_run, logged_values
from tests.training.sizes import NO_DROPOUT, overrides

pytestmark = pytest.mark.soak


@pytest.fixture
def common(world: Path) -> list[str]:
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    return [*TINY, *places, "trainer.epochs=40", "trainer.checkpoint_every=7"]


def test_a_rank_that_dies_is_named(common: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start([*common, f"out={run}", "devices=2"])
    wait_for(run / "metrics.jsonl", '"step": 6', process)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    printed = finish(process, code=2)
    assert "rank 1 (process" in printed and "died of SIGKILL" in printed
    assert "after update" in printed and "resume=auto" in printed
    finish(start([*common, f"out={run}", "devices=2", "resume=auto"]))


@pytest.mark.parametrize("outside", [False, True])
def test_a_rank_that_hangs_is_named(outside: bool, common: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*common, f"out={run}", "runtime.collective_timeout=60"]
    if outside:
        process = start(arguments, before=TORCHRUN)
        wait_until(lambda: 1 in read_heartbeats(run / RANKS), process)
        rank = read_heartbeats(run / RANKS)[1].process
    else:
        process = start([*arguments, "devices=2"])
        wait_for(run / "metrics.jsonl", '"step": 6', process)
        rank = workers(process.pid)[1]
    wait_for(run / "metrics.jsonl", '"step": 9', process)
    os.kill(rank, signal.SIGSTOP)
    printed = finish(process, code=1 if outside else 2)
    assert "rank 0, after update" in printed and "collective_timeout=60" in printed
    assert f"rank 1 (process {rank}, stopped) last told of update" in printed


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
    assert "a checkpoint was saved: pass resume=auto" in finish(process, code=code)
    finish(start([*arguments, f"out={cut}", "resume=auto"]))
    assert_same_run(whole, cut)


@pytest.mark.parametrize("devices", [1, 2])
def test_signals_at_any_moment(devices: int, world: Path, tmp_path: Path) -> None:
    """In the set-up, between updates, in a validation, behind the last update."""
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    slow = ["runtime.eval_batch_size=1", "rerank.k=100", "rerank.batch_size=8"]
    arguments = [*TINY, *places, *slow, "trainer.epochs=12", f"devices={devices}"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start([*arguments, f"out={whole}"]))
    chance, log = random.Random(devices), cut / "train.log"
    ends = 0
    for _ in range(12):
        size = log.stat().st_size if log.is_file() else 0
        process = start([*arguments, f"out={cut}", "resume=auto"])
        wait_until(lambda s=size: log.is_file() and log.stat().st_size > s, process)
        time.sleep(chance.uniform(0.0, 3.0))
        process.send_signal(signal.SIGTERM)
        printed, code = process.communicate(timeout=PATIENCE)[0], process.returncode
        done = (cut / "results.json").exists()
        assert code in (0, 75) or (done and code == -signal.SIGTERM), printed  # nothing to save
        ends += code == 75
        if done:
            break
    finish(start([*arguments, f"out={cut}", "resume=auto"]))
    assert ends >= 1
    assert_same_run(whole, cut)


def test_a_signal_while_the_data_is_made(tmp_path: Path) -> None:
    places = [f"data.root={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}"]
    large = [word for word in TINY if not word.startswith("data.prepare")]
    process = start([*large, *places, f"out={tmp_path / 'run'}"])
    wait_until((tmp_path / "data").exists, process)
    process.send_signal(signal.SIGTERM)
    assert "stopped by a signal before the first update" in finish(process, code=75)


def test_a_second_interrupt_stops_at_once(common: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start([*common, f"out={run}", "devices=2", "runtime.collective_timeout=86400"])
    wait_for(run / "metrics.jsonl", '"step": 6', process)
    ranks = workers(process.pid)
    os.kill(ranks[1], signal.SIGSTOP)  # it ignores signals, and the other rank waits for it
    process.send_signal(signal.SIGINT)
    time.sleep(5.0)
    assert process.poll() is None and all(Path(f"/proc/{rank}").exists() for rank in ranks)
    process.send_signal(signal.SIGINT)
    printed = finish(process, code=130)
    assert "interrupted; pass resume=auto" in printed
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_an_error_of_one_rank_is_reported(common: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    bad = [*common, "optim.lr=1e30", "optim.max_norm=null", f"out={run}", "devices=2"]
    printed = finish(start(bad), code=2)
    assert "is not finite" in printed and "do not answer" not in printed


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
    finish(start([*arguments, f"out={tmp_path / 'outside'}"], before=TORCHRUN))
    finish(start([*arguments, "devices=2", f"out={tmp_path / 'inside'}"]))
    assert_same_run(tmp_path / "outside", tmp_path / "inside")
    assert not (tmp_path / "outside" / RANKS).exists()


@pytest.mark.parametrize("model", ["vse", "albef"])
def test_compiled_towers_train_alike(model: str, world: Path, tmp_path: Path) -> None:
    given = overrides(model, world, *NO_DROPOUT[model], "batch_size=20", "trainer.max_steps=6")
    losses = {}
    for switch in ("false", "true"):
        run = tmp_path / switch
        log_every = ["trainer.log_every=1", f"runtime.compile={switch}", f"out={run}"]
        finish(start([*given, *log_every]))
        losses[switch] = [line["train/loss"] for line in logged_values(run) if "train/loss" in line]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_job_of_submitit_is_queued_again(number: int, common: list[str], tmp_path: Path) -> None:
    """Preempted (SIGTERM, which the controller hands on) or near its time limit (SIGUSR2)."""
    run, own = tmp_path / "run", ["hydra/launcher=slurm", "hydra.launcher.cluster=local"]
    process = start(["-m", *own, *common, "devices=2", f"out={run}"], cwd=tmp_path)
    wait_for(run / "metrics.jsonl", '"step": 9', process)
    (folder,) = [path for path in (tmp_path / ".cache" / "slurm").iterdir() if path.name.isdigit()]
    controller = int(folder.name)
    told = [controller] if number == signal.SIGTERM else tasks_of(controller)
    for one in told:
        os.kill(one, number)
    finish(process)
    log = (run / "train.log").read_text()
    assert log.count("run directory") == 2 and "resuming at update" in log
    assert "the run is saved" in log and (run / "results.json").is_file()


def tasks_of(controller: int) -> list[int]:
    """The processes that train under submitit's local controller."""
    found = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    return [int(number) for number in found]
