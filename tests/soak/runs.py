"""Runs of train.py in processes of their own, which are killed, waited for and compared."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.conftest import ROOT

TIMES = ("time", "pairs_per_second", "seconds")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "COLUMNS": "300"}


def start(arguments: Sequence[str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    """train.py, in a session of its own, so that all that it starts can be killed with it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def children(process: int) -> list[int]:
    """Ids of the processes that ``process`` started itself, in their order."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return sorted(int(number) for number in found)


def workers(process: int) -> list[int]:
    """Those of its children that train: the ranks, in their order."""
    return [
        child
        for child in children(process)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a launcher and its workers, at once."""
    for child in [*workers(process.pid), process.pid]:
        os.kill(child, signal.SIGKILL)
    process.wait()


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    while not (path.is_file() and text in path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    printed = process.communicate(timeout=900)[0]
    assert process.returncode == code, printed
    return " ".join(printed.split())


def values(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in lines]


def assert_equal(first: Path, second: Path) -> None:
    assert values(first) == values(second)
    a, b = (load_file(run / "checkpoints" / "last.safetensors") for run in (first, second))
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def kill_often(arguments: Sequence[str], run: Path, times: int, chance: random.Random) -> int:
    """SIGKILL a run, resumed again and again, moments after it began to write; how often."""
    metrics, count = run / "metrics.jsonl", 0
    while count < times:
        process = start([*arguments, f"out={run}", "resume=auto"])
        size = metrics.stat().st_size if metrics.is_file() else 0
        while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size != size):
            time.sleep(0.01)  # it has begun to write: resumed, that is, or started
        time.sleep(chance.uniform(0.0, 0.5))
        if process.poll() is not None:
            break  # finished sooner than it could be killed so often
        kill_all(process)
        count += 1
    return count
