"""TensorBoard's and Trackio's files, read back with their own packages."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from itr.results.hard_queries import COLUMNS
from itr.results.results_file import read_results
from itr.results.trackers.config import TensorboardConfig, TrackerConfig, TrackioConfig
from itr.results.trackers.tracker import open_tracker
from tests.results.trackers.test_tracker import CONFIG, lines

HOSTILE = "<script>alert(1)</script> [/red] | `x` \x1b[31m"
TABLE = "test/hard_queries"


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def scalars(found: Any) -> dict[tuple[str, int], float]:
    return {
        (key, point.step): point.value
        for key in found.Tags()["scalars"]
        for point in found.Scalars(key)
    }


def text_of(found: Any, key: str) -> str:
    (event,) = found.Tensors(f"{key}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def code_in(text: str) -> Any:
    return json.loads("\n".join(line.removeprefix("    ") for line in text.splitlines()))


def test_tensorboard_has_every_scalar_the_configuration_and_the_tables(finished: Path) -> None:
    found = events(finished / "tensorboard")
    kept = scalars(found)
    for line in lines(finished / "metrics.jsonl"):
        step = line.pop("step")
        line.pop("time")
        for key, value in line.items():
            assert kept[key, step] == pytest.approx(value, rel=1e-6), key  # it keeps 32 bits
    written = yaml.safe_load((finished / "config.yaml").read_text())
    assert code_in(text_of(found, "configuration")) == written
    results = read_results(finished)
    assert code_in(text_of(found, "results")) == results
    table = text_of(found, TABLE).splitlines()
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == ["row", *COLUMNS]
    assert len(table) > 18 and "(image)" in table[2]
    images = found.Images(f"{TABLE}/image")
    assert images[0].step == 0 and max(images[0].width, images[0].height) <= 160


def test_trackio_has_every_scalar_the_configuration_and_the_tables(finished: Path) -> None:
    os.environ.setdefault("TRACKIO_DIR", str(finished.parent / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    name = finished.name
    logged = SQLiteStorage.get_logs("itr", name)
    kept = {(key, row["step"]): value for row in logged for key, value in row.items()}
    for line in lines(finished / "metrics.jsonl"):
        step = line.pop("step")
        line.pop("time")
        for key, value in line.items():
            assert kept[key, step] == value, key
    config = SQLiteStorage.get_run_config("itr", name)
    written = yaml.safe_load((finished / "config.yaml").read_text())
    assert {key: config[key] for key in written} == written
    assert config["tags"][:2] == ["hrem", "scenes"] and config["job"] == "train"
    table = next(row[TABLE] for row in logged if TABLE in row)
    assert list(table["_value"][0]) == list(COLUMNS) and len(table["_value"]) > 16
    picture = table["_value"][0]["image"]
    path = next((finished.parent / "trackio" / "media").rglob(Path(picture["file_path"]).name))
    with Image.open(path) as opened:
        assert max(opened.size) <= 160
    results = read_results(finished)
    last = {key: value for row in logged for key, value in row.items()}
    shown = {k: v for k, v in results.items() if not k.startswith("val/")}  # a curve has its end
    numbers = {k: v for k, v in shown.items() if isinstance(v, int | float)}
    assert {key: last[key] for key in numbers} == numbers


@pytest.mark.parametrize("name", ["trackio", "tensorboard"])
def test_a_tracker_is_silent_keeps_text_as_text_and_resumes(
    name: str, tmp_path: Path, finished: Path, caplog: Any, capfd: Any
) -> None:
    caplog.set_level(logging.INFO, logger="itr")
    config = TrackerConfig(tensorboard=TensorboardConfig(dir=str(tmp_path / "events")))
    if name == "trackio":
        config = TrackerConfig(trackio=TrackioConfig(project="resumed"))
    run = tmp_path / "run"
    for resume in (False, True):
        with open_tracker(config, run, CONFIG, resume) as tracker:
            for step in (1, 2) if not resume else (2, 3):
                tracker.log({"a": 10.0 * step + resume}, step)
            if resume:
                tracker.table("t", ["text", "number"], [[HOSTILE, 1.5], [None, 2]])
                tracker.preempt()
                tracker.summary({"b": 2.0, "c": "text"})
    with pytest.raises(KeyError), open_tracker(config, tmp_path / "failed", CONFIG) as tracker:
        raise KeyError("x")
    assert capfd.readouterr() == ("", "")
    assert f"{name} " in caplog.text and not [r for r in caplog.records if r.levelname == "WARNING"]
    if name == "tensorboard":
        found = events(tmp_path / "events" / "run")
        assert [(e.step, e.value) for e in found.Scalars("a")] == [(1, 10), (2, 21), (3, 31)]
        table = text_of(found, "t")
        state = text_of(events(tmp_path / "events" / "failed"), "state")
        assert "exit code 1" in state and text_of(found, "state") == "preempted"
    else:
        from trackio.sqlite_storage import SQLiteStorage

        logged = SQLiteStorage.get_logs("resumed", "run")
        assert {(row["step"], row["a"]) for row in logged if "a" in row} >= {(1, 10), (3, 31)}
        assert SQLiteStorage.get_runs("resumed").count("run") == 1
        assert any(row.get("b") == 2 for row in logged)
        (table,) = [row["t"]["_value"][0]["text"] for row in logged if "t" in row]
        alerts = [alert["title"] for alert in SQLiteStorage.get_alerts("resumed")]
        assert sorted(alerts) == ["failed", "preempted"]
    assert "<script>" not in table.replace("\\<script>", "") and "\x1b" not in table
    assert "\\| \\`x\\`" in table


@pytest.mark.parametrize("name", ["trackio", "tensorboard"])
def test_a_missing_package_is_named_and_training_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    absent = {"trackio": "trackio", "tensorboard": "torch.utils.tensorboard"}[name]
    monkeypatch.setitem(sys.modules, absent, None)
    config = TrackerConfig(trackio=TrackioConfig(), tensorboard=TensorboardConfig())
    setattr(config, {"trackio": "tensorboard", "tensorboard": "trackio"}[name], None)
    with open_tracker(config, tmp_path, CONFIG) as tracker:
        tracker.log({"a": 1.0}, step=1)
    assert caplog.text.count(f"pip install 'itr-suite[{name}]'") == 1
    assert len(lines(tmp_path / "metrics.jsonl")) == 1
