"""A run survives whatever happens to the small files of its directory."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import lock_descriptor

from itr import checkpoint
from itr.errors import ConfigError, DataError, TrainingError
from itr.jobs import run_dir
from itr.jobs.lock import RunLock
from itr.jobs.similar_runs import similar_run
from itr.results.run_folder import LOCK
from itr.terminal import OutputConsole
from itr.training.checkpointing import LAST
from itr.training.console import close_log, log, log_failure, open_log

VALUES: dict[str, Any] = {
    "model": {"name": "hrem", "text": {"lr": 1e-05, "name": "1e-5", "note": "${oc.env:HOME}"}},
    "data": {"name": "scenes", "splits": {"train": "train"}, "on": "off"},
    "loss": {"name": "hrem", "weights": {"base": 1.0}},
    "trainer": {"epochs": 30},
    "seed": 0,
}
MANIFEST = {"train": {"hash": "a", "source": "here"}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unfinished run with a checkpoint."""
    monkeypatch.setattr(log, "propagate", True)
    folder = tmp_path / "run"
    run_dir.write_config(folder, VALUES)
    run_dir.write_manifest(folder, MANIFEST)
    meta = {"config": VALUES, "manifest": MANIFEST}
    checkpoint.write(folder / "checkpoints" / LAST, {"w": torch.ones(3)}, meta)
    return folder


def resumed(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**VALUES, "out": str(folder), "resume": "auto", **changes}


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[:20], "binary": b"\xff\x00{"}[how])


DAMAGES = ["empty", "cut", "binary", "gone"]


def test_the_configuration_is_read_as_it_was_written(run: Path) -> None:
    assert yaml.safe_load((run / "config.yaml").read_text()) == VALUES
    assert run_dir.open_run(resumed(run)) == (run, None)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_configuration_is_restored(
    how: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run / "config.yaml", how)
    assert run_dir.open_run(resumed(run)) == (run, None)
    assert "restored from a checkpoint" in caplog.text
    with pytest.raises(ConfigError, match="seed: 0 there, 7 now") as refusal:
        run_dir.open_run(resumed(run, seed=7))
    assert "out=DIR" in str(refusal.value) and "overwrite" not in str(refusal.value)
    with pytest.raises(ConfigError, match="resume=auto") as refusal:
        run_dir.open_run(resumed(run, resume=None))
    assert "overwrite" not in str(refusal.value)
    run_dir.write_config(run, VALUES)
    assert yaml.safe_load((run / "config.yaml").read_text()) == VALUES


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_manifest_is_restored(
    how: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run / "data.json", how)
    with pytest.raises(DataError, match="content of train differs") as refusal:
        run_dir.write_manifest(run, {"train": {"hash": "b", "source": "there"}})
    assert "overwrite" not in str(refusal.value)
    run_dir.write_manifest(run, MANIFEST)
    assert json.loads((run / "data.json").read_text()) == MANIFEST
    assert ("restored from a checkpoint" in caplog.text) == (how != "gone")


@pytest.mark.parametrize("how", DAMAGES[:3])
def test_without_a_checkpoint_there_is_nothing_to_lose(
    how: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "checkpoints" / LAST).unlink()
    damage(run / "config.yaml", how)
    damage(run / "data.json", how)
    if how == "cut":  # valid YAML of another configuration
        with pytest.raises(ConfigError, match="overwrite=true"):
            run_dir.open_run(resumed(run))
        return
    assert run_dir.open_run(resumed(run)) == (run, None)
    run_dir.write_manifest(run, MANIFEST)
    assert "starts over" in caplog.text and "cannot be compared" in caplog.text


def test_a_start_that_was_killed_leaves_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    (tmp_path / ".config.yaml.0123456789ab.tmp").touch()
    assert run_dir.open_run({**VALUES, "out": str(tmp_path)}) == (tmp_path, None)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds files but no run"):
        run_dir.open_run({**VALUES, "out": str(tmp_path)})


def test_what_is_unchanged_is_not_written(run: Path) -> None:
    before = {name: (run / name).stat().st_ino for name in ("config.yaml", "data.json")}
    run_dir.write_config(run, VALUES)
    run_dir.write_manifest(run, MANIFEST)
    assert {name: (run / name).stat().st_ino for name in before} == before
    run_dir.write_config(run, {**VALUES, "resume": "auto"})
    assert (run / "config.yaml").stat().st_ino != before["config.yaml"]


def test_a_full_disk_leaves_the_run_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(TrainingError, match="out=DIR"):
            run_dir.write_config(run, {**VALUES, "resume": "auto"})
        with pytest.raises(TrainingError, match="out=DIR"):
            run_dir.write_manifest(run, {"train": {"hash": "a", "source": "elsewhere"}})
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_longer_run_names_the_one_that_it_is_mistaken_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = {**VALUES, "task": {"name": "retrieval"}, "resume": "auto"}
    short = {**base, "trainer": {"epochs": 4}}
    run_dir.write_config(run_dir.run_path(short), short)
    long = {**base, "trainer": {"epochs": 8}}
    told = similar_run(run_dir.run_path(long), long)
    assert told is not None and "trainer.epochs: 4 there, 8 now" in told
    assert f"model.init={run_dir.run_path(short)}" in told
    other = {**base, "trainer": {"epochs": 8}, "a": 1, "b": 2, "c": 3}
    assert similar_run(run_dir.run_path(other), other) is None
    assert similar_run(tmp_path / "mine", {**long, "out": str(tmp_path / "mine")}) is None


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="out=.*file: is a file"):
        run_dir.open_run({**VALUES, "out": str(tmp_path / "file")})


def test_the_log_of_a_run_says_why_it_failed(tmp_path: Path) -> None:
    console = OutputConsole(file=io.StringIO())
    open_log(tmp_path / "train.log", console)
    try:
        for error in (DataError("a.jpg: broken"), KeyError("missing")):
            try:
                raise error
            except Exception as raised:
                log_failure(raised)
    finally:
        close_log()
    text = (tmp_path / "train.log").read_text()
    assert "a.jpg: broken" in text and text.count("Traceback") == 1 and "KeyError" in text
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_look_at_the_lock_stops_no_job(tmp_path: Path) -> None:
    """``itr runs`` holds it for an instant."""
    with RunLock(tmp_path):
        pass
    looking = (tmp_path / LOCK).open("rb")
    assert lock_descriptor(looking.fileno(), blocking=False)
    threading.Timer(0.15, looking.close).start()
    with RunLock(tmp_path):
        assert "process" in (tmp_path / LOCK).read_text()
