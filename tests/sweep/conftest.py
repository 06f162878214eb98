"""A sweep file of tiny runs, and a way to run it as a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, TINY

COMMAND = ["${env}", "python", "${program}", "${args_no_hyphens}"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "PYTHONPATH": str(ROOT)}


def plain(overrides: list[str]) -> dict[str, Any]:
    """``key=value`` as a sweep file writes it."""
    pairs = (override.partition("=") for override in overrides)
    return {key: {"value": yaml.safe_load(value)} for key, _, value in pairs}


@pytest.fixture
def sweep_file(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep over ``parameters`` of tiny runs; ``options`` win over the usual keys."""

    def write(parameters: dict[str, Any], /, name: str = "tiny", **options: Any) -> Path:
        whole = {
            "program": "train.py",
            "method": "grid",
            "metric": {"name": "val/rsum", "goal": "maximize"},
            "parameters": {
                **plain([*TINY, "trainer.epochs=1", "model.text.vocabulary_size=200"]),
                "data.root": {"value": str(world / "data")},
                "data.cache": {"value": str(world / "cache")},
                **parameters,
            },
            "command": COMMAND,
            **options,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(whole, sort_keys=False))
        return path

    return write


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the quick train.py, which a sweep that is started there runs."""
    shutil.copy(ROOT / "tests" / "sweep" / "stand_in" / "train.py", tmp_path / "train.py")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """``itr sweep`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "itr.sweep", *arguments],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 900) -> tuple[int, str]:
    """Its exit code and what it printed."""
    printed, _ = process.communicate(timeout=timeout)
    return process.returncode, printed


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
