"""Fixtures for sweeps: a sweep file of tiny runs, a stand-in for train.py, a sweep process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import processes
from tests.conftest import PATIENCE, ROOT, TINY
from tests.processes import Process

COMMAND = ["${env}", "python", "${program}", "${args_no_hyphens}"]


def plain(overrides: list[str]) -> dict[str, Any]:
    """``key=value`` arguments as entries of a sweep file."""
    pairs = (override.partition("=") for override in overrides)
    return {key: {"value": yaml.safe_load(value)} for key, _, value in pairs}


@pytest.fixture
def sweep_file(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep file of tiny runs over ``parameters``; ``options`` replace other keys."""

    def write(parameters: dict[str, Any], /, name: str = "tiny", **options: Any) -> Path:
        content = {
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
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose train.py is the stand-in; a sweep started there runs it."""
    shutil.copy(ROOT / "tests" / "sweep" / "stand_in" / "train.py", tmp_path / "train.py")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def start(*arguments: str, cwd: Path, **environment: str) -> Process:
    """Start ``itr sweep`` in another process."""
    given = {"PYTHONPATH": str(ROOT), **environment}
    return processes.start("-m", "itr.sweep", *arguments, cwd=cwd, **given)


def finish(process: Process) -> tuple[int, str]:
    """The exit code and output of a process."""
    done = process.finish()
    return done.returncode, done.stdout + done.stderr


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once ``condition()`` is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"no result after {PATIENCE:.0f} s"
        time.sleep(0.05)
