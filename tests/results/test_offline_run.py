"""An offline Weights & Biases run holds all that our own files hold, and gives the same table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from itr.results.__main__ import main
from itr.results.collect import collect, find_results
from itr.results.hard import COLUMNS, COUNT
from itr.results.tables import read_results
from itr.results.wandb_read import from_run
from tests.results.test_tracker import items, lines, records

TABLE = "test/hard_queries/"


@pytest.fixture(scope="module")
def record(finished: Path) -> list[Any]:
    return records(finished)


def summary_of(record: list[Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for part in record:
        if part.WhichOneof("record_type") == "summary":
            summary |= items(part.summary.update)
    return summary


def config_of(record: list[Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for part in record:
        kind = part.WhichOneof("record_type")
        if kind in ("run", "config"):
            config |= items(
                getattr(part, kind).config.update if kind == "run" else part.config.update
            )
    return config


def test_every_metric_of_the_file_is_in_the_run(finished: Path, record: list[Any]):
    history: dict[tuple[str, int], Any] = {}
    for part in record:
        if part.WhichOneof("record_type") == "history":
            row = items(part.history.item)
            history |= {(key, row["_step"]): value for key, value in row.items()}
    logged = lines(finished / "metrics.jsonl")
    assert len(logged) > 5
    for line in logged:
        step = line.pop("step")
        line.pop("time")
        for key, value in line.items():
            assert history[key, step] == value, key


def test_every_key_of_the_configuration_is_in_the_run(finished: Path, record: list[Any]):
    written = yaml.safe_load((finished / "config.yaml").read_text())
    found = config_of(record)
    assert {key: found.get(key) for key in written} == json.loads(json.dumps(written))


def test_the_hardest_queries_are_a_table_with_pictures(finished: Path, record: list[Any]):
    told = {key.removeprefix(TABLE): v for key, v in summary_of(record).items() if TABLE in key}
    assert told["_type"] == "table-file" and told["ncols"] == len(COLUMNS)
    folder = next(finished.glob("wandb/offline-run-*/files"))
    content = json.loads((folder / told["path"]).read_text())
    assert content["columns"] == list(COLUMNS) and len(content["data"]) == told["nrows"] > COUNT
    ranks = [row[1] for row in content["data"] if row[0] == "t2i"]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] > 1
    kept = [part.artifact for part in record if part.WhichOneof("record_type") == "artifact"]
    (artifact,) = [one for one in kept if "hard_queries" in one.name]
    pictures = [c for c in artifact.manifest.contents if c.path.startswith("media/images/")]
    assert len(pictures) == 20  # every image of the split, once
    for picture in pictures:
        assert Path(picture.local_path).is_relative_to(finished)
        with Image.open(picture.local_path) as opened:
            assert max(opened.size) <= 160


def test_the_table_from_the_service_is_the_table_from_the_files(finished: Path, record: list[Any]):
    (ours,) = collect(find_results([finished]), resamples=0)
    found = from_run(finished.name, summary_of(record), config_of(record))
    (theirs,) = collect([found], resamples=0)
    assert theirs.values == ours.values and theirs.name == ours.name
    assert theirs.protocol == ours.protocol and theirs.seeds == ours.seeds
    results = read_results(finished)
    assert {k: found.results[k] for k in results if results[k] is not None} == {
        k: v for k, v in results.items() if v is not None
    }


def test_without_a_service_the_group_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert main(["--wandb", "hrem-scenes"]) == 2
    assert "type `wandb login`" in capsys.readouterr().err
