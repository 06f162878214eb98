"""Kills while datasets, caches, pages, exports and results are written: nothing half is left."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import ROOT, TINY
from tests.soak.writing_commands import STAGES, commands, content

pytestmark = pytest.mark.soak
KILLS = 8
MADE_ONCE = ("scenes", "tokens")  # by training, which keeps them


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    words = (str(ROOT / "train.py"), *TINY, *places, f"out={folder}")
    assert processes.run(*words).returncode == 0
    return folder


def kill_after(words: list[str], seconds: float, cwd: Path) -> bool:
    """Start a command and kill it; False if it had ended by then."""
    process = processes.start(*words, cwd=cwd)
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    ended = process.poll() is not None
    process.kill()
    process.wait()
    return not ended


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"}


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_there_is_whole(stage: str, run: Path, tmp_path: Path) -> None:
    words, target = commands(run, tmp_path)[stage]
    key, _, name = target.rpartition("=")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()

    def command(folder: Path) -> list[str]:
        return [*words, f"{key}={folder / name}" if key else str(folder / name)]

    began = time.monotonic()
    assert processes.run(*command(whole), cwd=tmp_path).returncode == 0
    life, chance, kills = time.monotonic() - began, random.Random(stage), 0
    while kills < KILLS:
        kills += kill_after(command(killed), chance.uniform(0.2, 1.0) * life, tmp_path)
        if stage == "eval":  # each file is whole; results.json comes last
            if (killed / name / "results.json").exists():
                assert content(killed / name) == content(whole / name)
        elif (killed / name).exists():
            assert content(killed / name) == content(whole / name)
        else:
            continue
        shutil.rmtree(killed)
        killed.mkdir()
    done = processes.run(*command(killed), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert content(killed / name) == content(whole / name)
    assert files_below(killed) == files_below(whole)  # no draft of a killed command is left


@pytest.mark.parametrize("made", MADE_ONCE)
def test_what_is_made_once_is_made_whole(made: str, world: Path, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        root = folder / "data" if made == "scenes" else world / "data"
        places = [f"data.root={root}", f"data.cache={folder / 'cache'}", f"out={folder / 'run'}"]
        sizes = ["trainer.max_steps=1", "batch_size=8", "overwrite=true", "tracker=none"]
        return [str(ROOT / "train.py"), *TINY, *places, *sizes]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    done = processes.run(*command(whole))
    assert done.returncode == 0, done.stdout + done.stderr
    life, chance, kills = time.monotonic() - began, random.Random(made), 0
    while kills < KILLS:
        kills += kill_after(command(killed), chance.uniform(0.0, 0.7) * life, tmp_path)
        if kills % 3 == 0:
            shutil.rmtree(killed, ignore_errors=True)
    done = processes.run(*command(killed))
    assert done.returncode == 0, done.stdout + done.stderr
    part = {"scenes": "data", "tokens": "cache"}[made]
    assert content(killed / part) == content(whole / part)
    assert files_below(killed / part) == files_below(whole / part)
