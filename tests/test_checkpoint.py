"""Damage to a checkpoint is found and named; training falls back to the previous one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from itr import checkpoint, files
from itr.clock import Clock
from itr.errors import CheckpointError
from itr.training.checkpointing import BEST, DAMAGED, LAST, PREVIOUS, find_resumable
from itr.training.console import log
from itr.verify_cli import main as verify

META: dict[str, Any] = {
    "clock": Clock(updates=3).state_dict(),
    **{"scaler": {}, "world": 1, "device": "cpu", "best": None, "window": {}},
}


def write(path: Path) -> Path:
    tensors = {
        "model/a": torch.full((4096,), 1.5),
        "model/b": torch.full((50,), 2.5, dtype=torch.bfloat16),
        "flags": torch.ones(3, dtype=torch.bool),
        "scalar": torch.tensor(7),
        "none": torch.empty(0, 3),
    }
    checkpoint.write(path, tensors, META)
    return path


def zero(path: Path) -> None:
    """512 zeroed bytes in the middle, as a bad sector leaves them."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 512] = bytes(512)
    path.write_bytes(content)


def garble_clock(path: Path) -> None:
    """Another number in the header, which stays valid JSON."""
    content = path.read_bytes()
    assert content.count(b'\\"updates\\": 3') == 1
    path.write_bytes(content.replace(b'\\"updates\\": 3', b'\\"updates\\": 4'))


def rename(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"model/a"', b'"model/x"', 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [zero, garble_clock, rename, cut, empty]


def test_a_sound_file_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "checkpoints" / BEST)
    assert checkpoint.verify(path) == 5
    read = checkpoint.read_tensors(path, "model/")
    assert set(read) == {"a", "b"} and bool((read["b"] == 2.5).all())
    assert verify([str(tmp_path)]) == verify([str(path)]) == 0
    assert f"{path}: undamaged (5 tensors" in capsys.readouterr().out


def test_the_damaged_tensor_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, bad = write(tmp_path / BEST), write(tmp_path / LAST)
    zero(bad)
    with pytest.raises(CheckpointError, match="1 of its tensors .*: model/a;"):
        checkpoint.read_tensors(bad)
    assert "scalar" in checkpoint.read_tensors(bad, verify=False)
    assert checkpoint.read_tensors(bad, "flags")  # the damaged one is not read
    assert verify([str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"{sound}: undamaged" in printed.out
    assert str(bad) in printed.err and "model/a" in printed.err


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_a_sentence(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = write(tmp_path / LAST)
    damage(path)
    with pytest.raises(CheckpointError, match=LAST):
        checkpoint.verify(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_previous_checkpoint_is_used_and_said(
    damage: Callable[[Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    last, previous = write(tmp_path / LAST), write(tmp_path / PREVIOUS)
    assert find_resumable(tmp_path) == last and not caplog.text
    damage(last)
    assert find_resumable(tmp_path) == previous
    assert str(last) in caplog.text and "resuming from the previous checkpoint" in caplog.text
    assert not last.exists() and (tmp_path / DAMAGED).is_file()
    assert find_resumable(tmp_path) == previous  # also if the job is killed here
    damage(write(last))
    damage(previous)
    with pytest.raises(CheckpointError, match="neither is the previous one.*overwrite=true"):
        find_resumable(tmp_path)
    write(tmp_path / BEST)
    with pytest.raises(CheckpointError, match="weights are sound.*model.init=") as refusal:
        find_resumable(tmp_path)
    assert "overwrite" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_tensors_may_be_left_unchecked(tmp_path: Path) -> None:
    last = write(tmp_path / LAST)
    zero(last)
    assert find_resumable(tmp_path, verify=False) == last


def test_folders_without_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_resumable(tmp_path) is None
    assert verify([str(tmp_path)]) == verify([str(tmp_path / "no.safetensors")]) == 2
    assert "contains no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(("version", "advice"), [(1, "expected format 2"), (9, "update the suite")])
def test_other_formats_are_named(
    version: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "FORMAT_VERSION", version)
        path = write(tmp_path / LAST)
    with pytest.raises(CheckpointError, match=f"{LAST}.*format {version}.*{advice}"):
        checkpoint.read_meta(path)


def test_a_kill_while_a_checkpoint_is_written_leaves_nothing_for_long(tmp_path):
    path = tmp_path / "last.safetensors"
    code = (
        "import os, signal, sys, itr.checkpoint as c, torch\n"
        "from pathlib import Path\n"
        "def save(tensors, name, metadata):\n"
        "    (Path(name).parent / '.tmpYcKUR0').write_bytes(bytes(100))  # as the library does\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "c.save_file = save\n"
        "c.write(Path(sys.argv[1]), {'a': torch.ones(2)}, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode
    assert done == -signal.SIGKILL and list(tmp_path.rglob("*")) and not path.exists()
    files._remove_orphans.cache_clear()  # as in the next process
    checkpoint.write(path, {"a": torch.ones(2)}, {})
    assert [p.name for p in tmp_path.rglob("*")] == ["last.safetensors"]
