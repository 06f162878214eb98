"""A file system of 30 MB that is full at each stage: a sentence, nothing half, and going on.

Mounting one needs root; elsewhere these tests are skipped (others use a limit on file sizes).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import ROOT, TINY
from tests.soak.writing_commands import STAGES, commands, content
from tests.training.same_run import assert_same_run

pytestmark = pytest.mark.soak
SIZE = 30 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on another disk."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(world, folder)
    return folder


def train(world: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    return processes.run(str(ROOT / "train.py"), *TINY, *places, f"out={out}", *more)


def fill(disk: Path, room: int) -> Path:
    """A file that leaves ``room`` bytes."""
    path = disk / "filler"
    free = os.statvfs(disk)
    path.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
    return path


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a command that found the disk full."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    told = done.stderr.rpartition("error: ")[2]
    assert "No space left on device" in told or "free" in told, done.stderr
    return told


def left(disk: Path) -> list[str]:
    return sorted(path.name for path in disk.rglob("*") if path.is_file() and path.name != "filler")


@pytest.mark.parametrize("room", [0, 4 << 10, 64 << 10, 200 << 10, 500 << 10])
def test_training_goes_on_once_there_is_room(room: int, disk: Path, run: Path, world: Path) -> None:
    filler = fill(disk, room)
    done = train(world, disk / "run")
    if done.returncode:  # it may fit
        refused(done)
        assert not [name for name in left(disk) if name.endswith(".tmp")]
        filler.unlink()
        done = train(world, disk / "run", "resume=auto")
    assert done.returncode == 0, done.stderr
    assert_same_run(run, disk / "run")


@pytest.mark.parametrize("stage", STAGES)
def test_a_command_leaves_nothing_half(stage: str, disk: Path, run: Path, tmp_path: Path) -> None:
    words, target = commands(run, tmp_path)[stage]
    key, _, name = target.rpartition("=")

    def start(folder: Path) -> subprocess.CompletedProcess[str]:
        last = f"{key}={folder / name}" if key else str(folder / name)
        return processes.run(*words, last, cwd=tmp_path)

    filler = fill(disk, 4 << 10)
    refused(start(disk))
    assert left(disk) == []
    filler.unlink()
    for folder in (disk, tmp_path / "elsewhere"):
        folder.mkdir(exist_ok=True)
        done = start(folder)
        assert done.returncode == 0, done.stdout + done.stderr
    assert content(disk / name) == content(tmp_path / "elsewhere" / name)
