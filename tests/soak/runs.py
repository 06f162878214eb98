"""Starts training runs in processes, kills them, waits for them and compares their results."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import PATIENCE, ROOT

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
    """Start train.py in a new session, so that its whole process tree can be killed.

    ``before``: arguments between Python and train.py; ``shell``: commands to run first.
    """
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
    """Ids of the direct child processes, ascending."""
    numbers = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return sorted(int(number) for number in numbers)


def workers(process: int) -> list[int]:
    """Ids of the child processes that train, in the order of their ranks."""
    ranks = []
    for child in children(process):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                ranks.append(child)
    return ranks


def kill_all(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to all processes of a session."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == process.pid:
                os.kill(int(entry.name), signal.SIGKILL)
    process.wait()


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[str], within: float = PATIENCE
) -> None:
    """Return once ``ready()`` is true. Fail if ``process`` ends first, or kill it after ``within``
    seconds and fail."""
    end = time.monotonic() + within
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > end:
            kill_all(process)
            raise AssertionError(f"nothing within {within} s: {process.communicate()[0]}")
        time.sleep(0.005)


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Return once the file ``path`` contains ``text``."""
    wait_until(lambda: path.is_file() and text in path.read_text(), process)


def finish(process: subprocess.Popen[str], code: int = 0, within: float = PATIENCE) -> str:
    """The output of ``process`` as one line. Fail unless its exit code is ``code``."""
    try:
        printed = process.communicate(timeout=within)[0]
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise AssertionError(f"no end within {within} s: {process.communicate()[0]}") from None
    assert process.returncode == code, printed
    return " ".join(printed.split())


def kill_often(arguments: Sequence[str], run: Path, times: int, chance: random.Random) -> None:
    """Kill and resume a run ``times`` times: every third time at a random moment after its start
    (imports, set-up, first checkpoint), otherwise shortly after it began to write."""
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
