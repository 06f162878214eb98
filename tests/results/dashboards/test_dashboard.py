"""The W&B workspace and report: what they name exists in a run, and what is sent to the service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from itr.results.__main__ import main
from itr.results.dashboards.contents import Subject, workspace
from itr.results.results_file import read_results
from itr.results.row_labels import flatten
from itr.sweep.dashboard_cli import of_group
from tests.results.trackers.test_tracker import lines

SWEEP = """
program: train.py
method: grid
metric: {name: val/rsum, goal: maximize}
parameters:
  model: {value: hrem}
  model.embed_size: {values: [32, 64]}
  loss.weights.cross: {values: [0.0, 1.0]}
  seed: {values: [0, 1]}
command: ['${env}', python, '${program}', '${args_no_hyphens}', resume=auto]
"""


def known_names(run: Path) -> tuple[set[str], set[str]]:
    """Metrics of a run and keys of its configuration."""
    metrics = {key for line in lines(run / "metrics.jsonl") for key in line}
    metrics |= set(read_results(run)) | {"test/hard_queries", "_step"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    return metrics, set(flatten(config))


def named(node: Any) -> Iterator[tuple[str, str]]:
    """("metric" or "config", name) of everything that a specification names."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "metrics":
            yield from (("metric", name) for name in value)
        elif key == "metricRegex":
            yield "regex", value
        elif key in ("xAxis", "yAxis", "accessor", "targetKey") and isinstance(value, str):
            yield from address(value)
        elif key == "groupBy" and value != "None":
            yield from address(f"config:{value}")
        elif key == "columnOrder":
            yield from (one for column in value for one in address(column))
        elif key in ("grouping", "keys"):
            for one in value:
                inner = one.get("key", one)
                yield from address(f"{inner['section']}:{inner['name']}")
        elif key == "val" and node.get("nodeType") == "const":
            yield "metric", value
        elif isinstance(value, dict | list):
            yield from named(value)


def address(text: str) -> Iterator[tuple[str, str]]:
    section, _, name = text.rpartition(":")
    if section == "config":
        yield "config", name.replace(".value", "", 1)
    elif section != "run":
        yield "metric", name


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "pair.yaml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize("kind", ["workspace", "report"])
def test_everything_that_is_named_exists_in_a_run(
    kind: str, finished: Path, sweep: Path, tmp_path: Path
) -> None:
    out = tmp_path / "spec.json"
    more = ["--report", "--runs", str(finished)] if kind == "report" else []
    assert main(["dashboard", "--json", str(out), "--sweep", str(sweep), *more]) == 0
    spec = json.loads(out.read_text())
    metrics, config = known_names(finished)
    found = list(named(spec))
    assert len({name for kind, name in found if kind == "metric"}) > 25
    varied = {"model.embed_size", "loss.weights.cross"}
    assert varied | {"model.name", "seed"} <= {name for kind, name in found if kind == "config"}
    for what, name in found:
        if what == "regex":
            assert any(re.fullmatch(name, metric) for metric in metrics), name
        else:
            assert name in (metrics if what == "metric" else config), f"{what} {name}"
    assert '"sweep:pair"' in json.dumps(spec)
    if kind == "report":
        text = json.dumps(spec)
        assert "| hrem" in text and "rSum" in text  # the table of paper against ours


def test_a_workspace_survives_the_package() -> None:
    from wandb_workspaces.workspaces import Workspace

    subject = Subject("x", tag="t", varied=("model.name",), terms=("base",))
    view = workspace(subject, "me", "itr")._to_model()
    again = Workspace._from_model(view)._to_model()
    kept = [
        json.loads(one.spec.model_dump_json(by_alias=True, exclude_none=True))
        for one in (view, again)
    ]
    for spec in kept:  # the package does not read back where the table of queries stands
        del spec["section"]["panelBankConfig"]["sections"][-1]["panels"][0]["layout"]
    assert kept[0] == kept[1]


def test_a_group_says_which_panels_there_are() -> None:
    coco = of_group("hrem-coco-retrieval")
    assert coco.protocols == ("test/coco_1k_5fold/rsum", "test/cxc/rsum", "test/eccv/i2t_map_at_r")
    assert coco.terms[:2] == ("base", "cross") and coco.main == "rsum"
    answers = of_group("albef-vqa-vqa")
    assert (answers.main, answers.recalls) == ("accuracy", False)
    assert of_group("anything").terms == ()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Stands for the service's one GraphQL function; holds the views that were saved."""
    import wandb
    import wandb_workspaces._graphql as graphql
    import wandb_workspaces.reports.v2.interface as reports

    views: list[dict[str, Any]] = []

    def execute(api: Any, query: Any, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in str(query):
            new = {**variables, "id": variables["id"] or f"VmlldzoxMjM{len(views)}="}
            views[:] = [view for view in views if view["id"] != new["id"]] + [new]
            return {"upsertView": {"view": {"id": new["id"], "name": new["name"]}}}
        if "internalId" in str(query):
            return {"project": {"internalId": "UHJvamVjdDox"}}
        if variables["name"] != "itr":
            return {"project": None}
        fits = [v for v in views if v["type"] == variables["viewType"]]
        nodes = [{"node": {"id": v["id"], "name": v["name"]}} for v in fits]
        return {"project": {"allViews": {"edges": nodes}}}

    client = SimpleNamespace(app_url="https://wandb.example")
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(client=client))
    for module in (graphql, reports):
        monkeypatch.setattr(module, "execute_graphql", execute)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    return views


@pytest.mark.parametrize("kind", [[], ["--report"]])
def test_the_second_call_updates_the_same_view(
    kind: list[str], service: list[dict[str, Any]], finished: Path, capsys: Any
) -> None:
    report = [*kind, "--runs", str(finished)] if kind else []
    given = ["dashboard", "me/itr", "--group", "hrem-scenes-retrieval", *report]
    assert main(given) == 0 and main(given) == 0
    first, second = (line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert (first[0], second[0]) == ("made", "brought up to date") and first[1] == second[1]
    (view,) = service
    assert first[1].startswith("https://wandb.example/me/itr")
    assert view["displayName"] == "itr: hrem-scenes-retrieval"
    assert ("section" in json.loads(view["spec"])) == (not kind)
    assert main(["dashboard", "me/itr", *report]) == 0
    assert len(service) == 2  # of all runs: another view


def test_what_is_missing_is_an_error(
    service: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    assert main(["dashboard", "me/nothing"]) == 2
    assert "train one run first" in capsys.readouterr().err
    assert main(["dashboard", "itr"]) == 2 and "ENTITY/PROJECT" in capsys.readouterr().err
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("itr.results.dashboards.service.has_key", lambda _: False)
    assert main(["dashboard", "me/itr"]) == 2
    assert re.search("wandb login.*--json", capsys.readouterr().err)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    assert main(["dashboard", "--json", str(tmp_path / "spec.json")]) == 2
    assert "itr-suite[dashboards]" in capsys.readouterr().err
    assert not service
