"""The tutorial runs from beginning to end."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.conftest import ROOT

STEPS = ("data check", "train", "eval", "gallery", "search", "results")


def test_quick_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # an entry point sets it for good
    monkeypatch.setattr(sys, "argv", ["tutorial.py", "--quick"])
    runpy.run_path(str(ROOT / "docs" / "tutorial.py"), run_name="__main__")
    printed = capsys.readouterr().out
    places = [printed.index(f"$ itr {step} ") for step in STEPS]
    assert places == sorted(places)
    run = tmp_path / "runs" / "tutorial" / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["updates"] == 4 and results["data"] == "table"
    assert (run / "gallery-test.html").is_file()
    found = printed[places[STEPS.index("search")] :]
    assert found.count(".jpg") == 5  # the images that match best
