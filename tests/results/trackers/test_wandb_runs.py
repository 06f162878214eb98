"""An offline Weights & Biases run contains everything in our files and gives the same table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from PIL import Image

from itr.results.__main__ import main
from itr.results.collect import collect, find_results
from itr.results.hard_queries import COLUMNS, COUNT
from itr.results.results_file import read_results
from itr.results.wandb_runs import from_run
from tests.conftest import PATIENCE
from tests.results.trackers.test_tracker import items, lines, records

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


def test_the_hardest_queries_are_logged_as_a_table_with_images(finished: Path, record: list[Any]):
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


def test_the_table_from_the_service_equals_the_table_from_the_files(
    finished: Path, record: list[Any]
):
    (ours,) = collect(find_results([finished]), resamples=0)
    found = from_run(finished.name, summary_of(record), config_of(record))
    (theirs,) = collect([found], resamples=0)
    assert theirs.values == ours.values and theirs.name == ours.name
    assert theirs.protocol == ours.protocol and theirs.seeds == ours.seeds
    results = read_results(finished)
    assert {k: found.results[k] for k in results if results[k] is not None} == {
        k: v for k, v in results.items() if v is not None
    }


def test_an_unreachable_service_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert main(["--wandb", "hrem-scenes"]) == 2
    assert "wandb login" in capsys.readouterr().err


class Service(BaseHTTPRequestHandler):
    """A fake W&B service that answers with ``server.runs``."""

    server: Any

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(raw) if self.path == "/graphql" else {}  # not its own measurements
        data: dict[str, Any] = {"viewer": {"id": "1", "entity": "me", "username": "me"}}
        if "query Runs(" in asked.get("query", ""):
            self.server.asked.append(asked["variables"])
            edges = [{"node": node, "cursor": "c"} for node in self.server.runs]
            page = {"endCursor": "c", "hasNextPage": False}
            data = {"project": {"internalId": "1", "runCount": len(edges), "readOnly": False,
                                "runs": {"edges": edges, "pageInfo": page}}}  # fmt: skip
        out = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def service(runs: list[dict[str, Any]]) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.runs, server.asked = runs, []
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def nested(summary: dict[str, Any]) -> dict[str, Any]:
    """``{"val/rsum/max": 3}`` of a run file as the service has it: ``{"val/rsum": {"max": 3}}``."""
    found: dict[str, Any] = {}
    for key, value in summary.items():
        head, _, leaf = key.rpartition("/")
        if leaf in ("max", "min"):
            found[head] = {leaf: value}
        else:
            found[key] = value
    return found


def test_the_finished_runs_of_a_group_are_requested(
    finished: Path, record: list[Any], tmp_path: Path
):
    config = {key: {"value": value} for key, value in config_of(record).items()}
    node = {"id": "1", "name": "abc", "displayName": "the-run", "state": "finished",
            "projectId": "1", "createdAt": "2026-01-01T00:00:00", "tags": [],
            "user": {"name": "me", "username": "me"},
            "config": json.dumps(config), "systemMetrics": "{}", "sweepName": None,
            "summaryMetrics": json.dumps(nested(summary_of(record)))}  # fmt: skip
    with service([node]) as server:
        done = subprocess.run(
            [sys.executable, "-m", "itr.results", "--wandb", "hrem-scenes-retrieval",
             "--project", "me/itr", "--split", "val", "--format", "csv"],
            env={**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
                 "WANDB_API_KEY": "0" * 40, "WANDB_CONFIG_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (asked,) = server.asked
    assert json.loads(asked["filters"]) == {"group": "hrem-scenes-retrieval", "state": "finished"}
    assert (asked["order"], asked["entity"], asked["project"]) == ("+created_at", "me", "itr")
    best = read_results(finished)["val/i2t_r10"]
    assert "hrem" in done.stdout and f"{best:.1f}" in done.stdout
