"""``itr runs`` on run directories: real locks and logs, results made in milliseconds."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from itr.cli import main
from itr.errors import Stopped, TrainingError
from itr.jobs.lock import RunLock
from itr.results.run_folder import LOG, PLANNED, STARTED
from itr.training.console import close_log, log, log_failure, open_log
from itr.training.signals import StopRequest
from tests.conftest import PATIENCE, ROOT
from tests.results import synthetic_runs


def unfinished(folder: Path, updates: int = 0, rsum: float | None = None) -> Path:
    """A run that was started, and has logged some updates."""
    folder.mkdir(parents=True)
    names = {key: {"name": name} for key, name in (("model", "vse"), ("data", "scenes"))}
    config = {**names, "task": {"name": "retrieval"}, "loss": {"name": "triplet"}, "seed": 3}
    (folder / "config.yaml").write_text(json.dumps({**config, "select_on": "val"}))
    lines: list[dict[str, Any]] = [{"step": n, "train/loss": 1.0} for n in range(1, updates + 1)]
    if rsum is not None:
        lines += [{"step": updates, "val/rsum": rsum}, {"step": updates, "val/rsum": rsum - 9}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 99')  # the last line is being written
    open_log(folder / LOG, Console(quiet=True))
    log.info("%s%s", STARTED, folder)
    log.info("%s%d", PLANNED, 80)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run in each state."""
    folder = tmp_path / "runs"
    synthetic_runs.run(folder / "hrem-scenes-a", noise=0.5)
    (folder / "hrem-scenes-a" / LOG).write_text("")
    unfinished(folder / "failed", 5)
    log_failure(TrainingError("[red]no space[/red] \x1b[2J left"))
    unfinished(folder / "sweep" / "preempted", 40, rsum=200.0)
    stop = StopRequest()
    stop.number = signal.SIGTERM
    with pytest.raises(Stopped) as stopped:
        stop.check()
    log.warning("%s", stopped.value.message)
    unfinished(folder / "killed", 7)
    unfinished(folder / "running")
    damaged = synthetic_runs.run(folder / "damaged")
    (damaged / LOG).write_text("")
    (damaged / "results.json").write_text('{"model": ')
    close_log()
    return folder


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["runs", *map(str, arguments), "--json"]) == 0
    return list(json.loads(capsys.readouterr().out))


def test_every_state_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(runs / "running"):
        found = {run["name"]: run for run in listed(capsys, runs)}
        assert main(["runs", str(runs)]) == 0
        text = capsys.readouterr().out
    states = {name: run["state"] for name, run in found.items()}
    assert states == {
        "hrem-scenes-a": "finished", "failed": "failed", "sweep/preempted": "preempted",
        "killed": "killed", "running": "running", "damaged": "damaged",
    }  # fmt: skip
    assert listed(capsys, runs, "name=running")[0]["state"] == "killed"  # the lock is gone
    stopped = found["sweep/preempted"]
    assert (stopped["updates"], stopped["planned"], stopped["val"]) == (40, 80, 200.0)
    assert (stopped["model"], stopped["loss"], stopped["seed"]) == ("vse", "triplet", 3)
    assert "resume=auto" in stopped["reason"] and "resume=auto" in found["killed"]["reason"]
    results = json.loads((runs / "hrem-scenes-a" / "results.json").read_text())
    assert found["hrem-scenes-a"]["test"] == results["test/rsum"]
    size = sum(p.stat().st_size for p in (runs / "hrem-scenes-a").rglob("*") if p.is_file())
    assert found["hrem-scenes-a"]["size"] == size
    assert text.startswith("6 runs: 1 running, 1 finished, 1 preempted, 1 failed, 1 killed")
    assert "40 of 80" in text and "200.0" in text and "results.json: not valid JSON" in text
    assert r"failed: [red]no space[/red] \x1b[2J left" in text and "\x1b[2J" not in text


def test_filters_and_order(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def names(*arguments: str) -> list[str]:
        return [run["name"] for run in listed(capsys, runs, *arguments)]

    assert names("model=vse", "state=k*", "--sort", "name") == ["killed", "running"]
    assert names("state=failed") == ["failed"] and names("seed=7") == []
    assert names("--sort", "val")[0] == "sweep/preempted"
    assert names("--sort", "name", "--reverse")[0] == "sweep/preempted"
    assert main(["runs", str(runs), "modle=vse"]) == 2
    assert "modle=vse: no such filter; nearest: model" in capsys.readouterr().err
    assert main(["runs", str(runs / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["runs", str(runs), "--watch", "0"]) == 2
    assert "--watch 0" in capsys.readouterr().err


def test_tags(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(runs / "killed")
    assert main(["runs", "tag", folder, "--add", "paper", "table:2"]) == 0
    assert main(["runs", "tag", folder, "--remove", "paper", "--add", "final"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder}: table:2 final"
    (found,) = listed(capsys, runs, "tag=table*")
    assert found["name"] == "killed" and found["tags"] == ["table:2", "final"]
    assert main(["runs", str(runs)]) == 0 and "tags" in capsys.readouterr().out
    assert main(["runs", "tag", folder, "--add", "two words"]) == 2
    assert "--add two words: expected letters" in capsys.readouterr().err
    assert main(["runs", "tag", str(runs), "--add", "x"]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_archive_and_delete(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = runs / "killed"
    with RunLock(runs / "running"):
        for action in ("archive", "delete"):
            assert main(["runs", action, str(kept), str(runs / "running"), "--yes"]) == 2
            assert "a job is training in this folder" in capsys.readouterr().err
    assert kept.is_dir()  # all or nothing
    assert main(["runs", "archive", str(kept), "--yes"]) == 0
    assert (runs / "archive" / "killed" / "config.yaml").is_file() and not kept.exists()
    assert "killed" not in {run["name"] for run in listed(capsys, runs)}
    assert [run["name"] for run in listed(capsys, runs / "archive")] == ["killed"]
    assert main(["runs", "delete", str(runs / "failed"), "--yes"]) == 0
    assert not (runs / "failed").exists()


@pytest.mark.parametrize(("answer", "remains"), [(b"y\n", False), (b"\n", True)])
def test_deleting_asks_first(runs: Path, answer: bytes, remains: bool) -> None:
    folder = runs / "failed"
    command = [sys.executable, "-m", "itr", "runs", "delete", str(folder)]
    refused = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2 and "pass --yes in a script" in refused.stderr
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, text=False)
    os.write(ours, answer)
    printed = process.communicate()[0].decode()
    assert process.returncode == 0 and "delete 1 runs" in printed and "no space" in printed
    assert folder.exists() is remains


def test_watching_ends_with_an_interrupt(runs: Path) -> None:
    command = [sys.executable, "-m", "itr", "runs", str(runs), "--watch", "0.05"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, SIGINT is ignored and would stay so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    seen = 0
    try:
        for line in process.stdout:
            seen += line.startswith("6 runs")
            if seen == 3:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130


def test_listing_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; from itr.cli import main; main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "runs", str(runs)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
