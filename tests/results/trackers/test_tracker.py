"""The metrics file, and offline Weights & Biases runs read back from their files."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from itr.errors import ConfigError, TrainingError
from itr.instantiate import check
from itr.results.trackers.config import TrackerConfig, WandbConfig
from itr.results.trackers.metrics_file import MetricsFile
from itr.results.trackers.tracker import open_tracker
from itr.results.trackers.wandb_backend import resolve_mode, summary_statistic
from tests.conftest import PATIENCE, ROOT

CONFIG = {
    "model": {"name": "hrem", "embed_size": 8},
    "data": {"name": "scenes"},
    "loss": {"name": "triplet"},
    "task": {"name": "retrieval"},
    "seed": 3,
    "select_on": "test",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the W&B key, mode and settings of the user who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(folder: Path) -> list[Any]:
    """Records of the one finished W&B run below ``folder``. It is written by another
    process, which may be late: wait for the last record."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = list(parse(next(folder.glob("wandb/offline-run-*/*.wandb")).read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"no exit record below {folder}")


def parse(data: bytes) -> Iterator[Any]:
    """Records of a .wandb file: a LevelDB log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def items(part: Any) -> dict[str, Any]:
    """Keys and values of a config, history or summary record."""
    found = {}
    for item in part:
        key = item.key or "/".join(item.nested_key)
        found[key] = json.loads(item.value_json)
    return found


# The file


def test_lines_contain_step_time_and_values(tmp_path):
    with open_tracker(TrackerConfig(), tmp_path, CONFIG) as tracker:
        tracker.log({"epoch": 0, "train/loss": 0.5}, step=3)
        assert lines(tmp_path / "metrics.jsonl")[0]["train/loss"] == 0.5  # flushed at once
        tracker.log({"train/loss": float("nan"), "train/lr": 1e-5}, step=6)
        tracker.summary({"test/rsum": 100.0})
    first, second = lines(tmp_path / "metrics.jsonl")
    assert (first["step"], first["epoch"], second["step"]) == (3, 0, 6)
    assert (second["train/loss"], second["train/lr"]) == (None, 1e-5)
    assert second["time"] >= first["time"] > 1.6e9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_resumed_file_continues_at_the_checkpoint(tmp_path):
    config = TrackerConfig()
    with open_tracker(config, tmp_path, CONFIG) as tracker:
        tracker.log({"a": 1}, step=1)
        offset = tracker.offset()
        tracker.log({"a": 2}, step=2)
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 3, "a"')  # killed in the middle of a line
    with open_tracker(config, tmp_path, CONFIG, resume=True) as tracker:
        tracker.rewind(offset)
        assert tracker.offset() == offset
        tracker.log({"a": 2.5}, step=2)
    assert [(line["step"], line["a"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (1, 1),
        (2, 2.5),
    ]
    with open_tracker(config, tmp_path, CONFIG) as tracker:  # a new run forgets the old one
        tracker.log({"a": 9}, step=1)
    assert [line["a"] for line in lines(tmp_path / "metrics.jsonl")] == [9]


def test_a_new_file_can_be_rewound_too(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(3):
        file.log({"a": step}, step)
    file.rewind(0)
    file.log({"a": 7}, 7)
    file.close()
    assert [line["a"] for line in lines(tmp_path / "metrics.jsonl")] == [7]


def test_a_file_shorter_than_at_the_checkpoint_is_reported(tmp_path, caplog):
    with open_tracker(TrackerConfig(), tmp_path, CONFIG, resume=True) as tracker:
        tracker.rewind(500)
        tracker.log({"a": 1}, step=1)
    assert "metrics.jsonl has 0 bytes, but 500" in caplog.text
    assert [line["a"] for line in lines(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_with_advice(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    file = MetricsFile(tmp_path / "metrics.jsonl", resume=True)
    with pytest.raises(TrainingError, match=r"metrics.jsonl: .*resume=auto"):
        file.log({"a": 1}, step=1)


# Weights & Biases


def test_an_offline_run_contains_what_was_logged(tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO, logger="itr")
    wandb = WandbConfig(group="seeds", tags=["mine", "hrem"], notes="a note")
    config = TrackerConfig(wandb=wandb)
    run_dir = tmp_path / "hrem-scenes-triplet-0"
    with open_tracker(config, run_dir, CONFIG) as tracker:
        tracker.log({"epoch": 0, "train/loss": 2.0}, step=5)
        tracker.log({"epoch": 0, "val/rsum": 200.0, "val/i2t_medr": 9.0, "val/seconds": 1}, step=5)
        tracker.log({"epoch": 1, "val/rsum": 150.0, "val/i2t_medr": 4.0}, step=9)
        tracker.summary({"test/rsum": 321.0, "test/protocol": "full"})
    found = list(records(run_dir))
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    assert (run.project, run.run_group, run.job_type) == ("itr", "seeds", "train")
    assert (run.display_name, run.notes) == ("hrem-scenes-triplet-0", "a note")
    assert list(run.tags) == "hrem scenes triplet retrieval select_on=test mine".split()
    assert items(run.config.update)["model"] == {"name": "hrem", "embed_size": 8}
    history = [items(r.history.item) for r in found if r.WhichOneof("record_type") == "history"]
    assert [(row["_step"], row.get("train/loss"), row["val/rsum"]) for row in history] == [
        (5, 2.0, 200.0),
        (9, None, 150.0),
    ]
    metrics = {r.metric.name: r.metric for r in found if r.WhichOneof("record_type") == "metric"}
    assert metrics["val/rsum"].summary.max and metrics["val/rsum"].step_metric == "epoch"
    assert metrics["val/i2t_medr"].summary.min and metrics["train/loss"].summary.min
    assert not metrics["val/seconds"].summary.min and not metrics["val/seconds"].summary.max
    summary: dict[str, Any] = {}
    for record in found:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    assert (summary["test/rsum"], summary["test/protocol"]) == (321.0, "full")
    (exit_record,) = [r.exit for r in found if r.WhichOneof("record_type") == "exit"]
    assert exit_record.exit_code == 0
    assert f"wandb sync {run_dir / 'wandb' / 'offline-run-'}" in caplog.text
    assert capfd.readouterr() == ("", "")  # wandb itself says nothing


def test_an_exception_marks_the_run_as_failed(tmp_path):
    with (
        pytest.raises(KeyError),
        open_tracker(TrackerConfig(wandb=WandbConfig(mode="offline")), tmp_path, CONFIG) as tracker,
    ):
        tracker.log({"train/loss": 1.0}, step=1)
        raise KeyError("x")
    (code,) = [r.exit.exit_code for r in records(tmp_path) if r.WhichOneof("record_type") == "exit"]
    assert code == 1


def test_jobs_of_one_process_are_separate_runs_and_a_resumed_one_keeps_its_id(tmp_path):
    config = TrackerConfig(wandb=WandbConfig(mode="offline"))
    ids = []
    for folder, resume in (("a", False), ("b", False), ("a", True)):
        with open_tracker(config, tmp_path / folder, CONFIG, resume) as tracker:
            tracker.log({"train/loss": 1.0}, step=1)
        ids.append((tmp_path / folder / "wandb" / "run-id").read_text().strip())
    assert ids[0] == ids[2] != ids[1]
    assert len(lines(tmp_path / "a" / "metrics.jsonl")) == 2


@pytest.mark.parametrize("how", ["config", "environment", "none"])
def test_a_disabled_tracker_only_writes_the_file(tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    config = {
        "config": TrackerConfig(wandb=WandbConfig(mode="disabled")),
        "environment": TrackerConfig(wandb=WandbConfig()),
        "none": TrackerConfig(),
    }[how]
    with open_tracker(config, tmp_path / "run", CONFIG) as tracker:
        tracker.log({"a": 1}, step=1)
        tracker.summary({"a": 1})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_online_without_a_key_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"^tracker.wandb.mode=online: .*wandb login"):
        open_tracker(TrackerConfig(wandb=WandbConfig(mode="online")), tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["environment", "wandb.example.org", "api.wandb.ai"])
def test_a_configured_key_means_online(tmp_path, place):
    # In a process of its own: wandb reads its settings once.
    key = "0123456789" * 4
    script = (
        "import wandb, sys; from itr.results.trackers.wandb_backend import resolve_mode;"
        "print(resolve_mode('auto', wandb), resolve_mode('offline', wandb))"
    )
    environment = {"PATH": "", "HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)}
    if place == "environment":
        environment["WANDB_API_KEY"] = key
    else:
        if place == "wandb.example.org":
            environment["WANDB_BASE_URL"] = f"https://{place}"
        netrc = tmp_path / ".netrc"
        netrc.write_text(f"machine {place}\n  login user\n  password {key}\n")
        netrc.chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["online", "offline"]


def test_wandb_mode_takes_precedence_over_auto_only(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto", wandb) == "disabled"
    assert resolve_mode("offline", wandb) == "offline"


def test_an_invalid_key_does_not_stop_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with open_tracker(TrackerConfig(wandb=WandbConfig(mode="online")), tmp_path, CONFIG) as tracker:
        tracker.log({"train/loss": 1.0}, step=1)
    assert "Weights & Biases: no online run" in caplog.text
    assert any(r.WhichOneof("record_type") == "history" for r in records(tmp_path))
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_a_failing_backend_is_dropped_with_one_warning(tmp_path, caplog):
    config = TrackerConfig(wandb=WandbConfig(mode="offline"))
    with open_tracker(config, tmp_path, CONFIG) as tracker:
        tracker.log({"a": 1.0}, step=1)
        tracker.backends["Weights & Biases"].run.finish()  # logging to it now raises
        tracker.log({"a": 2.0}, step=2)
        tracker.log({"a": 3.0}, step=3)
    assert caplog.text.count("Weights & Biases failed") == 1
    assert [line["a"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_training_continues_without_wandb_installed(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as an absent package: import fails
    with open_tracker(TrackerConfig(wandb=WandbConfig()), tmp_path, CONFIG) as tracker:
        tracker.log({"a": 1.0}, step=1)
    assert caplog.text.count("wandb is not installed") == 1
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_importing_the_tracker_does_not_import_wandb():
    script = "import itr.results.trackers.tracker, sys; print('wandb' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("key", "best"),
    [
        ("val/rsum", "max"),
        ("test/coco_1k_5fold/t2i_r10", "max"),
        ("val/i2t_medr", "min"),
        ("val/t2i_meanr", "min"),
        ("train/loss", "min"),
        ("train/lr", None),
        ("epoch", None),
    ],
)
def test_summary_statistic(key, best):
    assert summary_statistic(key) == best


def test_unknown_options_list_the_known_ones():
    with pytest.raises(ConfigError, match="tracker.wandb.mode=on: .*auto"):
        check({"wandb": {"mode": "on"}}, TrackerConfig, "tracker")
    with pytest.raises(ConfigError, match="tracker.wandb.projct: .*nearest: project"):
        check({"wandb": {"projct": "on"}}, TrackerConfig, "tracker")
    with pytest.raises(ConfigError, match="tracker.tb: .*wandb"):
        check({"tb": {}}, TrackerConfig, "tracker")


@pytest.mark.parametrize(
    ("environment", "settings", "mode", "project"),
    [
        ({}, "", "offline", "itr"),  # no key
        ({"WANDB_API_KEY": "0" * 40}, "", "online", "itr"),
        ({"WANDB_API_KEY": "0" * 40}, "mode = offline", "offline", "itr"),
        ({"WANDB_API_KEY": "0" * 40}, "mode = disabled", "disabled", "itr"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "dryrun"}, "", "offline", "itr"),
        ({"WANDB_PROJECT": "mine"}, "", "offline", "mine"),
        ({}, "project = theirs", "offline", "theirs"),
    ],
)
def test_what_wandb_itself_says_holds(
    environment: dict[str, str], settings: str, mode: str, project: str, tmp_path: Path
) -> None:
    """In a process of its own, because wandb reads its settings once."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(f"[default]\n{settings}\n")
    code = (
        "import wandb; from itr.results.trackers import wandb_backend as b;"
        "print(b.resolve_mode('auto', wandb), b.own_project() or b.PROJECT)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == [mode, project]


def test_a_run_directory_that_vanishes_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    file = MetricsFile(folder / "metrics.jsonl")
    file.log({"a": 1.0}, 1)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(TrainingError, match=r"metrics.jsonl: was deleted, moved or replaced"):
        file.log({"a": 1.0}, 2)
    (tmp_path / "elsewhere").rename(folder)
    file.log({"a": 1.0}, 2)
    file.close()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_of_an_agent_keeps_the_nested_configuration(tmp_path, monkeypatch):
    chosen = tmp_path / "sweep.yaml"
    chosen.write_text("wandb_version: 1\nmodel:\n  value: hrem\nexperiment:\n  value: a/b\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(chosen))
    config = TrackerConfig(wandb=WandbConfig(mode="offline"))
    with open_tracker(config, tmp_path / "run", CONFIG) as tracker:
        tracker.log({"epoch": 1, "val/rsum": 100.0}, step=1)
        tracker.log({"epoch": 2, "val/rsum": 90.0}, step=2)
        tracker.summary({"val/rsum": 100.0})
    found = records(tmp_path / "run")
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    kept = items(run.config.update)
    assert kept["model"] == CONFIG["model"] and kept["experiment"] == "a/b"
    summaries = [r.summary for r in found if r.WhichOneof("record_type") == "summary"]
    values = [items(one.update).get("val/rsum") for one in summaries]
    assert [value for value in values if value is not None][-1] == 100.0
