"""The runner: jobs that fail, runners that are killed, and what is left to do.

Most of it with a job that takes no time, so that what happens to processes can be tried at all;
the last test runs train.py itself.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from itr.errors import ConfigError
from itr.jobs.lock import RunLock
from itr.sweep.cli import main
from itr.sweep.grid import grid_jobs
from itr.sweep.process_pool import Pool, Slot, lock_of, make_slots
from itr.sweep.spec import read_sweep
from tests.sweep.conftest import finish, start, wait_for

Write = Callable[..., Path]


def starts(runs: Path) -> list[int]:
    """How often each job was started, in rising order."""
    return sorted(len(path.read_text().splitlines()) for path in runs.glob("*/started"))


def table(runs: Path, name: str = "tiny") -> dict[str, dict[str, str]]:
    """The lines of table.csv by their seed."""
    text = (runs / "sweeps" / name / "table.csv").read_text().splitlines()
    return {line["seed"]: line for line in csv.DictReader(text)}


def interrupt_when(condition: Callable[[], bool], times: int = 1) -> threading.Thread:
    """Press Ctrl-C as soon as ``condition`` holds, ``times`` times."""

    def press() -> None:
        for _ in range(times):
            wait_for(condition)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_a_failing_job_is_retried_once_and_told(
    sweep_file: Write, beside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file({"seed": {"values": [0, 7, 13]}})
    assert main([str(path), "jobs=2"]) == 1
    told = capsys.readouterr().out
    assert "1 jobs failed" in told and "2 of 3 jobs done" in told
    runs = beside / "runs"
    assert starts(runs) == [1, 2, 2]
    lines = table(runs)
    assert [lines[seed]["state"] for seed in ("0", "7", "13")] == ["done", "done", "failed"]
    assert lines["13"]["reason"] == "the number of this run is unlucky"
    page = (runs / "sweeps" / "tiny" / "table.md").read_text()
    assert "2 done, 1 failed" in page
    assert "63.5 ± 4.9" in page  # of 60 and 67, by hand
    (row,) = json.loads((runs / "sweeps" / "tiny" / "table.json").read_text())["rows"]
    assert row["n"] == 2 and row["test/rsum"]["mean"] == 63.5
    assert "this was the first time (exit code 1)" in told

    assert main([str(path), "retries=0"]) == 1  # only the failed one is tried again
    assert starts(runs) == [1, 2, 3]
    assert "2 of 3 jobs are finished already" in capsys.readouterr().out
    assert main([str(path), "seed=0,7"]) == 0
    assert starts(runs) == [1, 2, 3]


def test_ctrl_c_lets_jobs_save_and_the_same_command_goes_on(
    sweep_file: Write, beside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = beside / "runs"
    path = sweep_file({"seed": {"values": [99, 1]}})
    thread = interrupt_when(lambda: len(list(runs.glob("*/metrics.jsonl"))) == 1)
    assert main([str(path)]) == 130
    thread.join()
    assert "the same command goes on" in capsys.readouterr().out
    assert len(list(runs.glob("*/saved"))) == 1 and not list(runs.glob("*/results.json"))
    assert main([str(path)]) == 0
    assert starts(runs) == [1, 2]


def test_a_second_ctrl_c_ends_the_jobs_at_once(
    sweep_file: Write, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_SECONDS", "0.01")
    text = (beside / "train.py").read_text()  # a job that is deaf to being asked
    (beside / "train.py").write_text(text.replace("SIGTERM, save", "SIGTERM, signal.SIG_IGN"))
    path = sweep_file({"seed": {"values": [99]}})
    thread = interrupt_when(lambda: bool(list((beside / "runs").glob("*/metrics.jsonl"))), 2)
    began = time.monotonic()
    assert main([str(path)]) == 130
    thread.join()
    assert time.monotonic() - began < 60 and not list((beside / "runs").glob("*/saved"))


def test_a_job_preempted_from_outside_goes_on(sweep_file: Write, beside: Path) -> None:
    path = sweep_file({"seed": {"values": [99]}})
    runs = beside / "runs"

    def preempt() -> None:
        wait_for(lambda: bool(list(runs.glob("*/metrics.jsonl"))))
        (job,) = runs.glob("*/metrics.jsonl")
        os.kill(json.loads(lock_of(job.parent).read_text())["pid"], signal.SIGTERM)

    thread = threading.Thread(target=preempt)
    thread.start()
    assert main([str(path), "retries=0"]) == 0
    thread.join()
    (told,) = json.loads((runs / "sweeps" / "tiny" / "table.json").read_text())["runs"]
    assert starts(runs) == [2] and told["state"] == "done" and told["attempts"] == 1


def test_killed_in_the_middle_only_the_missing_jobs_run(sweep_file: Write, beside: Path) -> None:
    runs, hold = beside / "runs", beside / "hold"
    path = sweep_file({"seed": {"values": [0, 13, 1, 2, 3, 4]}})
    first = start(str(path), "jobs=2", cwd=beside, STAND_IN_SECONDS="0.5")
    wait_for(lambda: len(list(runs.glob("*/results.json"))) >= 2)
    hold.touch()
    wait_for(lambda: len(list(runs.glob("*/started"))) > len(list(runs.glob("*/results.json"))) + 1)
    first.kill()
    first.wait()
    before = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    assert 2 <= len(before) < 5

    second = start(str(path), "jobs=2", "retries=0", cwd=beside)
    assert second.stdout is not None
    told = ""
    while "runs already, started by another call" not in told:
        line = second.stdout.readline()
        assert line, told
        told += line
    hold.unlink()
    code, rest = finish(second)
    assert code == 1, told + rest
    assert f"{len(before)} of 6 jobs are finished already" in told
    after = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    assert len(after) == 5 and before.items() <= after.items()
    # Whatever the killed runner had started was waited for, not started again.
    assert starts(runs)[:5] == [1, 1, 1, 1, 1] and starts(runs)[5] in (2, 3)
    states = {seed: line["state"] for seed, line in table(runs).items()}
    assert states == {**dict.fromkeys("01234", "done"), "13": "failed"}


@pytest.mark.soak
def test_two_runners_share_the_work(sweep_file: Write, beside: Path) -> None:
    path = sweep_file({"seed": {"values": [0, 1, 2, 3]}, "trainer.epochs": {"value": 20}})
    both = [start(str(path), cwd=beside, STAND_IN_SECONDS="0.1") for _ in range(2)]
    assert [finish(process)[0] for process in both] == [0, 0]
    assert starts(beside / "runs") == [1, 1, 1, 1]


def test_two_sweeps_wait_for_a_job_that_they_share(sweep_file: Write, beside: Path) -> None:
    (job,) = grid_jobs(read_sweep(sweep_file({"seed": {"value": 0}})), beside / "runs")
    (beside / "hold").touch()
    pools = [Pool("train.py", [Slot(0)], beside / "runs" / "sweeps" / name) for name in "ab"]
    for pool in pools:
        pool.folder.mkdir(parents=True)
    assert [pool.start(job, Slot(0)) for pool in pools] == [True, False]
    process = pools[0].running[job.run].process
    assert process is not None and pools[1].others() == [(job, process.pid)]
    assert not pools[1].poll()
    (beside / "hold").unlink()
    process.wait(60)
    assert [[ended.code for ended in pool.poll()] for pool in pools] == [[0], [None]]
    assert starts(beside / "runs") == [1]


def test_a_job_that_is_trained_by_hand_is_waited_for(
    sweep_file: Write, beside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file({"seed": {"value": 0}})
    (job,) = grid_jobs(read_sweep(path), Path("runs"))
    with ThreadPoolExecutor(1) as threads:
        held = RunLock(job.run)

        def free() -> None:
            wait_for(lambda: lock_of(job.run).exists())  # the runner came to the job
            time.sleep(0.5)
            held.handle.close()

        freed = threads.submit(free)
        assert main([str(path), "retries=0"]) == 0 and freed.done()
    assert starts(beside / "runs") == [1]
    assert "runs already, started by another call" in capsys.readouterr().out


def test_slots_hold_as_many_gpus_as_a_job_wants() -> None:
    slots, told = make_slots(None, 2, ["4", "5", "6", "7"])
    assert [slot.gpus for slot in slots] == ["4,5", "6,7"] and "2 at a time on 4 GPUs" in told
    slots, told = make_slots(8, 1, ["4", "5", "6", "7"])
    assert [slot.gpus for slot in slots] == [*"4567", *"4567"] and "up to 2 jobs to a GPU" in told
    assert [slot.gpus for slot in make_slots(3, 1, [])[0]] == [None] * 3
    with pytest.raises(ConfigError, match="wants 2 GPUs, 1 visible; type devices=1"):
        make_slots(None, 2, ["0"])


@pytest.mark.soak
def test_a_real_sweep_ends_in_a_table(
    sweep_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    path = sweep_file({"seed": {"values": [0, 1]}, "batch_size": {"value": 150}})
    assert main([str(path), "jobs=2", f"out={runs}"]) == 0, capsys.readouterr().out
    found = [json.loads(path.read_text()) for path in runs.glob("*/results.json")]
    sums = [results["test/rsum"] for results in found]
    mean = sum(sums) / 2
    deviation = sum((value - mean) ** 2 for value in sums) ** 0.5  # over n - 1 = 1
    assert len(found) == 2 and {results["seed"] for results in found} == {0, 1}
    page = (runs / "sweeps" / "tiny" / "table.md").read_text()
    assert f"{mean:.1f} ± {deviation:.1f}" in page, page
    assert "test split of scenes: 20 images, 100 captions" in page


@pytest.mark.soak
def test_a_real_sweep_of_six_jobs_is_killed_and_goes_on(sweep_file: Write, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # An epoch of this world has 300 captions: the job with 9999 a batch cannot work.
    sizes = [300, 9999, 150, 100, 75, 60]
    path = sweep_file({"batch_size": {"values": sizes}})
    first = start(str(path), "jobs=2", cwd=tmp_path)
    wait_for(lambda: len(list(runs.glob("*/results.json"))) >= 2, 1200)
    first.kill()
    first.wait()
    before = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    logs = (runs / "sweeps" / "tiny" / "jobs").glob("*.log")
    begun = {log.stem: log.read_text().count("$ ") for log in logs}

    code, told = finish(start(str(path), "jobs=2", cwd=tmp_path), 1200)
    assert code == 1, told
    after = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    assert len(after) == 5 and before.items() <= after.items()
    for name in after:
        log = (runs / "sweeps" / "tiny" / "jobs" / f"{name}.log").read_text()
        assert log.count("\n$ ") == 0, f"{name} was started twice"
    assert sum(begun.values()) < 8
    text = (runs / "sweeps" / "tiny" / "table.csv").read_text().splitlines()
    lines = {line["batch_size"]: line for line in csv.DictReader(text)}
    assert lines.pop("9999")["state"] == "failed"
    assert all(line["state"] == "done" for line in lines.values())
    for line in lines.values():
        results = json.loads((tmp_path / line["run"] / "results.json").read_text())
        assert float(line["test/rsum"]) == results["test/rsum"]
    code, told = finish(start(str(path), "batch_size=300,60", cwd=tmp_path))
    assert code == 0 and "2 of 2 jobs are finished already" in told
