"""Offline runs are uploaded once; the program of wandb is replaced, its files are real."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from itr.cli import main
from itr.results.trackers import sync_cli

# Does what `wandb sync` leaves behind: a mark beside the file that was uploaded.
STAND_IN = """
import pathlib, sys, time
run = pathlib.Path(sys.argv[-1])
log = pathlib.Path(sys.argv[1])
with open(log, "a") as file:
    file.write(" ".join(sys.argv[2:]) + "\\n")
if (run.parent.parent / "refuse").exists():
    sys.exit("wandb: ERROR the network is down")
if (run.parent.parent / "hang").exists():
    time.sleep(1800)
for file in run.glob("*.wandb"):
    file.with_name(file.name + ".synced").touch()
"""


@pytest.fixture
def uploading(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of one part, one of two parts, and one whose upload fails."""
    source = next(finished.glob("wandb/offline-run-*"))
    for name, parts in (("a", 1), ("b", 2), ("sweep/c", 1)):
        for part in range(parts):
            shutil.copytree(source, tmp_path / "runs" / name / f"wandb/offline-run-{part}-x")
    (tmp_path / "runs" / "sweep" / "c" / "refuse").touch()
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(sync_cli, "PROGRAM", (sys.executable, str(script), str(tmp_path / "log")))
    monkeypatch.setattr("itr.results.trackers.wandb_backend.has_key", lambda _: True)
    return tmp_path


def uploads(uploading: Path) -> list[str]:
    log = uploading / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_every_run_is_uploaded_once(uploading: Path, capsys: Any) -> None:
    runs = str(uploading / "runs")
    assert main(["sync", runs, "--dry"]) == 0
    out = capsys.readouterr().out
    assert "4 offline runs" in out and out.count("offline-run-") == 4 and not uploads(uploading)
    assert main(["sync", runs, "--entity", "me"]) == 1
    out = capsys.readouterr().out
    assert "3 uploaded, 1 failed" in out and "network is down" in out
    sent = uploads(uploading)
    assert len(sent) == 4 and all(line.startswith("-e me ") for line in sent)
    ordered = [line for line in sent if "/b/" in line]
    assert "offline-run-0" in ordered[0] and "offline-run-1" in ordered[1]
    (uploading / "runs" / "sweep" / "c" / "refuse").unlink()
    assert main(["sync", runs]) == 0
    out = capsys.readouterr().out
    assert "1 offline runs to upload, 3 uploaded before" in out
    assert len(uploads(uploading)) == 5 and "/c/" in uploads(uploading)[-1]
    assert main(["sync", runs]) == 0 and len(uploads(uploading)) == 5


def test_an_upload_that_hangs_is_ended(uploading: Path, capsys: Any) -> None:
    folder = uploading / "runs" / "sweep"
    (folder / "c" / "refuse").rename(folder / "c" / "hang")
    assert main(["sync", str(folder), "--timeout", "0.01"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "no end after 0.01 minutes; pass a longer --timeout" in out and "1 failed" in out
    assert main(["sync", str(folder), "--timeout", "0"]) == 2 and "--timeout 0" in _err(capsys)


def test_what_cannot_be_uploaded_is_said(
    uploading: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert main(["sync", str(uploading / "nowhere")]) == 2 and "no such folder" in _err(capsys)
    assert main(["sync", str(uploading), "--jobs", "0"]) == 2 and "--jobs 0" in _err(capsys)
    monkeypatch.setattr("itr.results.trackers.wandb_backend.has_key", lambda _: False)
    assert main(["sync", str(uploading)]) == 2 and "wandb login" in _err(capsys)
    monkeypatch.setattr("itr.results.runs.run_state.is_running", lambda _: True)
    assert main(["sync", str(uploading)]) == 0  # nothing is ready
    assert "a job is training in it" in capsys.readouterr().out and not uploads(uploading)


def _err(capsys: Any) -> str:
    return capsys.readouterr().err
