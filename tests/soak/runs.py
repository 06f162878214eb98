"""Runs in processes of their own, and what is done to them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.conftest import ROOT

TIMES = ("time", "pairs_per_second", "seconds")
DEADLINE = 900.0  # seconds for whatever is waited for, on a machine that does other work, too
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "WANDB_MODE": "offline",
    "COLUMNS": "300",
}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2")


def start(
    arguments: Sequence[str], cwd: Path = ROOT, before: Sequence[str] = (), shell: str = ""
) -> subprocess.Popen[str]:
    """train.py, in a session of its own, so that all that it starts can be killed with it;
    ``before`` stands between Python and train.py, ``shell`` is run first."""
    command = [sys.executable, *before, str(ROOT / "train.py"), *arguments]
    if shell:
        command = ["bash", "-c", f'{shell}; exec "$@"', "bash", *command]
    return subprocess.Popen(
        command,
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
    found = []
    for child in children(process):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a launcher and all of its session, at once."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == process.pid:
                os.kill(int(entry.name), signal.SIGKILL)
    process.wait()


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[str], within: float = DEADLINE
) -> None:
    """Returns when ``ready`` says so; an error if ``process`` ends before, or after ``within``
    seconds, and then it is killed."""
    end = time.monotonic() + within
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > end:
            kill_all(process)
            raise AssertionError(f"nothing within {within} s: {process.communicate()[0]}")
        time.sleep(0.005)


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Returns when ``text`` stands in the file ``path``."""
    wait_until(lambda: path.is_file() and text in path.read_text(), process)


def finish(process: subprocess.Popen[str], code: int = 0, within: float = DEADLINE) -> str:
    """What ``process`` printed, in one line; an error if it ends otherwise than with ``code``."""
    try:
        printed = process.communicate(timeout=within)[0]
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise AssertionError(f"no end within {within} s: {process.communicate()[0]}") from None
    assert process.returncode == code, printed
    return " ".join(printed.split())


def values(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in lines]


def assert_equal(first: Path, second: Path) -> None:
    """The same values and, bit for bit, the same weights, moments and generators."""
    assert values(first) == values(second)
    a, b = (load_file(run / "checkpoints" / "last.safetensors") for run in (first, second))
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def kill_often(arguments: Sequence[str], run: Path, times: int, chance: random.Random) -> None:
    """SIGKILL a run ``times`` times, resumed again and again: every third time at any moment from
    its start on (imports, set-up, first checkpoint), else moments after it began to write."""
    metrics, startup = run / "metrics.jsonl", 10.0
    for count in range(times):
        began = time.monotonic()
        process = start([*arguments, f"out={run}", "resume=auto"])
        if count % 3 == 0:
            time.sleep(chance.uniform(0.0, 1.2 * startup))
        else:
            size = metrics.stat().st_size if metrics.is_file() else 0
            wait_until(lambda s=size: metrics.is_file() and metrics.stat().st_size != s, process)
            startup = time.monotonic() - began
            time.sleep(chance.uniform(0.0, 0.5))
        assert process.poll() is None, f"over before kill {count + 1}; make the run longer"
        kill_all(process)
