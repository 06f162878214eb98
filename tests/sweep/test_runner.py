"""The sweep runner: failing jobs, interrupts, killed runners, and what is left to do.

Most tests use a stand-in for train.py that takes no time; soak tests run the real one.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from itr.errors import ConfigError
from itr.jobs.lock import RunLock
from itr.sweep import runner
from itr.sweep.cli import main
from itr.sweep.display import SweepDisplay
from itr.sweep.grid import grid_jobs
from itr.sweep.process_pool import lock_job, make_slots
from itr.sweep.spec import read_sweep
from tests.sweep.conftest import finish, start, wait_for

Write = Callable[..., Path]


def starts(runs: Path) -> list[int]:
    """How often each job was started, in ascending order."""
    return sorted(len(path.read_text().splitlines()) for path in runs.glob("*/started"))


def table(runs: Path, name: str = "tiny") -> dict[str, dict[str, str]]:
    """The lines of table.csv by seed."""
    text = (runs / "sweeps" / name / "table.csv").read_text().splitlines()
    return {line["seed"]: line for line in csv.DictReader(text)}


def glob_count(runs: Path, pattern: str) -> int:
    """The number of files that match."""
    return len(list(runs.glob(pattern)))


def interrupt_when(conditions: Sequence[Callable[[], bool]]) -> threading.Thread:
    """Press Ctrl-C each time the next of ``conditions`` holds."""

    def press() -> None:
        for condition in conditions:
            wait_for(condition)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of jobs that the runner in this process waits for, as they are announced."""
    labels: list[str] = []
    event = SweepDisplay.event

    def record(display: SweepDisplay, word: str, outcome: runner.JobOutcome, *details: str) -> None:
        event(display, word, outcome, *details)
        if word == "wait":
            labels.append(outcome.job.label)

    monkeypatch.setattr(SweepDisplay, "event", record)
    return labels


def test_a_failing_job_is_retried_once_and_reported(
    sweep_file: Write, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file({"seed": {"values": [0, 7, 13]}})
    assert main([str(path), "jobs=2"]) == 1
    printed = capsys.readouterr().out
    assert "1 of 3 jobs failed" in printed and "2 of 3 jobs done" in printed
    runs = stand_in / "runs"
    assert starts(runs) == [1, 2, 2]
    lines = table(runs)
    assert [lines[seed]["state"] for seed in ("0", "7", "13")] == ["done", "done", "failed"]
    assert lines["13"]["reason"] == "the number of this run is unlucky"
    page = (runs / "sweeps" / "tiny" / "table.md").read_text()
    assert "2 done, 1 failed" in page
    assert "63.5 ± 4.9" in page  # of 60 and 67, by hand
    (row,) = json.loads((runs / "sweeps" / "tiny" / "table.json").read_text())["rows"]
    assert row["n"] == 2 and row["test/rsum"]["mean"] == 63.5
    assert "this was the first time (exit code 1)" in printed

    assert main([str(path), "retries=0"]) == 1  # only the failed one is tried again
    assert starts(runs) == [1, 2, 3]
    assert "2 of 3 jobs are finished already" in capsys.readouterr().out
    assert main([str(path), "seed=0,7"]) == 0
    assert starts(runs) == [1, 2, 3]


def test_ctrl_c_lets_jobs_save_and_the_same_command_resumes(
    sweep_file: Write, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = stand_in / "runs"
    path = sweep_file({"seed": {"values": [99, 1]}})
    thread = interrupt_when([lambda: glob_count(runs, "*/metrics.jsonl") == 1])
    assert main([str(path)]) == 130
    thread.join()
    assert "interrupted" in capsys.readouterr().out
    assert glob_count(runs, "*/saved") == 1 and not glob_count(runs, "*/results.json")
    assert main([str(path)]) == 0
    assert starts(runs) == [1, 2]


def test_a_second_ctrl_c_kills_the_jobs(
    sweep_file: Write, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_DEAF", "1")  # it notes SIGTERM and continues
    monkeypatch.setattr(runner, "GRACE", 1e6)
    path = sweep_file({"seed": {"values": [99]}})
    runs = stand_in / "runs"
    thread = interrupt_when(
        [lambda: glob_count(runs, "*/metrics.jsonl") == 1, lambda: glob_count(runs, "*/saved") == 1]
    )
    assert main([str(path)]) == 130
    thread.join()
    (pid,) = runs.glob("*/pid")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_preempted_job_is_resumed(sweep_file: Write, stand_in: Path) -> None:
    path = sweep_file({"seed": {"values": [99]}})
    runs = stand_in / "runs"

    def preempt() -> None:
        wait_for(lambda: glob_count(runs, "*/metrics.jsonl") == 1)
        (pid,) = runs.glob("*/pid")
        os.kill(int(pid.read_text()), signal.SIGTERM)

    thread = threading.Thread(target=preempt)
    thread.start()
    assert main([str(path), "retries=0"]) == 0
    thread.join()
    (run,) = json.loads((runs / "sweeps" / "tiny" / "table.json").read_text())["runs"]
    assert starts(runs) == [2] and run["state"] == "done" and run["attempts"] == 1


def test_after_a_killed_runner_only_missing_jobs_run(
    sweep_file: Write, stand_in: Path, waits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, hold = stand_in / "runs", stand_in / "hold"
    hold.write_text("2 3 4")
    path = sweep_file({"seed": {"values": [0, 13, 1, 2, 3, 4]}})
    first = start(str(path), "jobs=2", cwd=stand_in)
    wait_for(lambda: glob_count(runs, "*/started") == 5)  # 0, 13 and 1 ended; 2 and 3 are held
    first.kill()
    first.wait()
    before = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    assert len(before) == 2 and starts(runs) == [1, 1, 1, 1, 2]

    def release() -> None:
        wait_for(lambda: len(waits) == 2)
        hold.unlink()

    thread = threading.Thread(target=release)
    thread.start()
    assert main([str(path), "jobs=2", "retries=0"]) == 1
    thread.join()
    assert waits == ["seed=2", "seed=3"]
    assert "2 of 6 jobs are finished already" in capsys.readouterr().out
    after = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    assert len(after) == 5 and before.items() <= after.items()
    # The jobs of the killed runner were waited for, not started again.
    assert starts(runs) == [1, 1, 1, 1, 1, 3]
    states = {seed: line["state"] for seed, line in table(runs).items()}
    assert states == {**dict.fromkeys("01234", "done"), "13": "failed"}


@pytest.mark.soak
def test_two_runners_share_the_work(sweep_file: Write, stand_in: Path) -> None:
    path = sweep_file({"seed": {"values": [0, 1, 2, 3]}, "trainer.epochs": {"value": 20}})
    both = [start(str(path), cwd=stand_in, STAND_IN_SECONDS="0.1") for _ in range(2)]
    assert [finish(process)[0] for process in both] == [0, 0]
    assert starts(stand_in / "runs") == [1, 1, 1, 1]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_job_started_elsewhere_is_waited_for(
    by_hand: bool, sweep_file: Write, stand_in: Path, waits: list[str]
) -> None:
    """``by_hand``: with train.py in that directory; else by another sweep that shares the job."""
    path = sweep_file({"seed": {"values": [0]}})
    (job,) = grid_jobs(read_sweep(path), Path("runs"))
    announced = threading.Event()

    def occupy() -> None:
        with RunLock(job.run) if by_hand else lock_job(job.run):
            announced.set()
            wait_for(lambda: bool(waits))
            assert not glob_count(stand_in / "runs", "*/started")

    thread = threading.Thread(target=occupy)
    thread.start()
    announced.wait()
    assert main([str(path), "retries=0"]) == 0
    thread.join()
    assert len(waits) == 1 and starts(stand_in / "runs") == [1]


def test_slots_hold_as_many_gpus_as_a_job_needs() -> None:
    slots, summary = make_slots(None, 2, ["4", "5", "6", "7"])
    assert slots == ["4,5", "6,7"] and "2 at a time on 4 GPUs" in summary
    slots, summary = make_slots(8, 1, ["4", "5", "6", "7"])
    assert slots == [*"4567", *"4567"] and "up to 2 jobs per GPU" in summary
    assert make_slots(3, 1, [])[0] == [None] * 3
    with pytest.raises(ConfigError, match="2 GPUs, 1 visible.*devices=1"):
        make_slots(None, 2, ["0"])


@pytest.mark.soak
def test_a_real_sweep_ends_in_a_table(
    sweep_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    path = sweep_file({"seed": {"values": [0, 1]}, "batch_size": {"value": 150}})
    assert main([str(path), "jobs=2", f"out={runs}"]) == 0, capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in runs.glob("*/results.json")]
    sums = [result["test/rsum"] for result in results]
    mean = sum(sums) / 2
    deviation = sum((value - mean) ** 2 for value in sums) ** 0.5  # over n - 1 = 1
    assert len(results) == 2 and {result["seed"] for result in results} == {0, 1}
    page = (runs / "sweeps" / "tiny" / "table.md").read_text()
    assert f"{mean:.1f} ± {deviation:.1f}" in page, page
    assert "test split of scenes: 20 images, 100 captions" in page


@pytest.mark.soak
def test_a_killed_real_sweep_continues(sweep_file: Write, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # An epoch of this world has 300 captions: batch_size=9999 fails.
    sizes = [300, 9999, 150, 100, 75, 60]
    path = sweep_file({"batch_size": {"values": sizes}})
    first = start(str(path), "jobs=2", cwd=tmp_path)
    wait_for(lambda: len(list(runs.glob("*/results.json"))) >= 2)
    first.kill()
    first.wait()
    before = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    logs = (runs / "sweeps" / "tiny" / "jobs").glob("*.log")
    started = {log.stem: log.read_text().count("$ ") for log in logs}

    code, printed = finish(start(str(path), "jobs=2", cwd=tmp_path))
    assert code == 1, printed
    after = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    assert len(after) == 5 and before.items() <= after.items()
    for name in after:
        log = (runs / "sweeps" / "tiny" / "jobs" / f"{name}.log").read_text()
        assert log.count("\n$ ") == 0, f"{name} was started twice"
    assert sum(started.values()) < 8
    text = (runs / "sweeps" / "tiny" / "table.csv").read_text().splitlines()
    lines = {line["batch_size"]: line for line in csv.DictReader(text)}
    assert lines.pop("9999")["state"] == "failed"
    assert all(line["state"] == "done" for line in lines.values())
    for line in lines.values():
        results = json.loads((tmp_path / line["run"] / "results.json").read_text())
        assert float(line["test/rsum"]) == results["test/rsum"]
    code, printed = finish(start(str(path), "batch_size=300,60", cwd=tmp_path))
    assert code == 0 and "2 of 2 jobs are finished already" in printed
