"""results.json and its tables for the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from itr.errors import DataError, TrainingError
from itr.results.results_file import read_results, write_results
from itr.results.terminal_tables import results_table, runs_table


def results(split: str, r1: float, protocol: str = "coco_5k", **more: Any) -> dict[str, Any]:
    metrics = {
        f"{way}_{key}": value
        for way in ("i2t", "t2i")
        for key, value in {"r1": r1, "r5": 70.25, "r10": 80.0, "medr": 2.0, "meanr": 4.5}.items()
    }
    metrics |= {"rsum": 2 * (r1 + 150.25), "protocol": protocol, "tie_break": "pessimistic"}
    metrics |= {"n_images": 5000, "n_captions": 25000, **more}
    return {f"{split}/{key}" if split else key: value for key, value in metrics.items()}


def text(table: Table) -> list[list[str]]:
    """Words of each printed line on a terminal with 80 columns."""
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_one_line_per_split_and_protocol():
    fold = {
        f"coco_1k_5fold/{k}": v for k, v in results("", 60.0).items() if "_" in k or k == "rsum"
    }
    fold["coco_1k_5fold/i2t_medr"] = 1.4
    flat = {**results("val", 33.333), **results("test", 40.0, **fold), "select_on": "val"}
    lines = text(results_table(flat, "runs/x"))
    numbers = ["70.2", "80.0", "2"]
    assert lines[0] == ["runs/x"]
    assert ["val", "coco_5k", "33.3", *numbers, "33.3", *numbers, "367.2"] in lines
    assert ["test", "coco_5k", "40.0", *numbers, "40.0", *numbers, "380.5"] in lines
    folds = ["60.0", "70.2", "80.0", "1.4", "60.0", *numbers, "420.5"]
    assert ["test", "coco_1k_5fold", *folds] in lines
    assert "val: 5000 images, 25000 captions, pessimistic ties".split() in lines


def test_table_of_an_evaluators_results():
    flat = {**results("", 40.0), "split": "dev"}
    lines = text(results_table(flat, ""))
    assert any(line[:3] == ["dev", "coco_5k", "40.0"] for line in lines)
    assert "dev: 5000 images, 25000 captions, pessimistic ties".split() in lines


def test_selection_on_the_test_split_is_marked():
    flat = {**results("test", 40.0), "select_on": "test"}
    for table in (results_table(flat, "x"), runs_table([("x", flat)])):
        assert "TEST" in text(table)[-1]


def test_one_line_per_run():
    first = {**results("val", 50.0), **results("test", 41.0)}
    numbers = ["70.2", "80.0", "2"]
    lines = text(runs_table([("first-run", first), ("second-run", results("test", 42.0))]))
    assert lines[0] == ["2", "runs"]
    assert ["first-run", "41.0", *numbers, "41.0", *numbers, "382.5"] in lines
    assert ["second-run", "*", "42.0", *numbers, "42.0", *numbers, "384.5"] in lines
    assert ["test", "coco_5k"] in lines
    lines = text(runs_table([("first", first), ("second", results("dev", 42.0, "full"))]))
    assert any(line[:4] == ["first", "test", "coco_5k", "41.0"] for line in lines)
    assert any(line[:4] == ["second", "dev", "full", "42.0"] for line in lines)


def test_results_are_read_as_written(tmp_path):
    flat = {**results("test", 1 / 3), "recipe": None, "official": True}
    path = write_results(tmp_path / "new" / "run", flat)
    assert read_results(tmp_path / "new" / "run") == flat
    assert json.loads(path.read_text())["test/i2t_r1"] == 1 / 3
    write_results(tmp_path / "new" / "run", {"a": 1})
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    assert read_results(path.parent) == {"a": 1}


def test_failed_writes_keep_the_old_results(tmp_path):
    write_results(tmp_path, {"a": 1})
    with pytest.raises(TypeError):
        write_results(tmp_path, {"a": object()})
    assert read_results(tmp_path) == {"a": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="could not be saved .* out=DIR"):
        write_results(tmp_path / "file" / "run", {"a": 1})


def test_missing_or_malformed_results_are_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="results.json: no such file"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"a":')
    with pytest.raises(DataError, match="results.json: .*JSON.* python eval.py checkpoint="):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(DataError, match="results.json: .*list"):
        read_results(tmp_path)
