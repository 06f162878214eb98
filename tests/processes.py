"""Commands in processes of their own that need not load torch, Transformers and Hydra again.

A command's imports take longer than what a test makes it do. Python's fork server loads them once;
each command is then a new process with its own id, folder, environment, streams, signals and exit
code. Whether a bare interpreter finds everything is what a few tests with `subprocess` ask.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from itr.data.tools import caption
from itr.jobs.launch import workers

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 1800.0  # seconds; only a test that hangs waits so long, however busy the machine
PRELOADED = (
    "itr.jobs.entry",
    "itr.jobs.evaluate",
    "itr.jobs.train",
    "itr.nn.bert.bert",
    "torchvision",
)

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))


def _begin(cwd: str, environment: Mapping[str, str], out: str, err: str, first: str) -> None:
    """Make this process look as if Python had been started for it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for name, number, path in (("stdout", 1, out), ("stderr", 2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
        setattr(sys, name, open(number, "w", encoding="utf-8", buffering=1, closefd=False))  # noqa: SIM115
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = list(dict.fromkeys([first, *filter(None, path), *sys.path]))
    importlib.invalidate_caches()


def _end(code: object) -> None:
    """What an interpreter does last, and a forked process leaves out."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.exit(code)


def _command(words: Sequence[str], *where: Any) -> None:
    """``python WORDS``: a script and its arguments, or -m and a module and its arguments."""
    module = words[0] == "-m"
    _begin(*where, first=os.getcwd() if module else str(Path(words[0]).parent))
    sys.argv = list(words[1:] if module else words)
    code: object = 0
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    _end(code)


def _function(function: Callable[..., object], arguments: Sequence[Any], *where: Any) -> None:
    _begin(*where, first=str(ROOT))
    function(*arguments)
    _end(0)


class Process:
    """A started process, with the parts of `subprocess.Popen` that the tests need."""

    def __init__(self, target: Callable[..., None], words: Sequence[Any], cwd: Path, env: Any):
        self.args = words
        self._folder = tempfile.TemporaryDirectory(prefix="itr-tests-")
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **env}
        where = (str(cwd), environment, str(self._out), str(self._err))
        self._process: ForkServerProcess = CONTEXT.Process(target=target, args=(*words, *where))
        self._process.start()
        self.pid = self._process.pid
        self.kill, self.terminate = self._process.kill, self._process.terminate

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """The exit code, negative for a signal, once the process has ended."""
        self._process.join(PATIENCE)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"{self.args}: no end after {PATIENCE:.0f} s")
        return self._process.exitcode

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait; the exit code and everything printed."""
        code = self.wait()
        printed = [path.read_text() if path.exists() else "" for path in (self._out, self._err)]
        return subprocess.CompletedProcess(list(self.args), code, *printed)


def start(*words: str, cwd: Path = ROOT, **environment: str) -> Process:
    """Start ``python WORDS``: a script and its arguments, or "-m", a module and its arguments."""
    return Process(_command, [words], cwd, environment)


def run(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`start`, and wait for the end."""
    return start(*words, cwd=cwd, **environment).finish()


def run_function(
    function: Callable[..., object], *arguments: Any, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``function(*arguments)``, a function of a module, in a process of its own."""
    return Process(_function, [function, arguments], cwd, environment).finish()


def run_ranks(function: Callable[..., object], *arguments: Any, world: int) -> None:
    """Run ``function(rank, *arguments)`` in ``world`` processes; raises what one of them raises."""
    from torch.multiprocessing import start_processes  # conftest sets the threads of torch first

    start_processes(function, arguments, nprocs=world, start_method="forkserver")


@contextlib.contextmanager
def forked_ranks() -> Iterator[None]:
    """Inside, ranks of a job or of the captioner are forked from the server and need no imports.

    For jobs that get no signal; how ranks start in use is what the tests of signals ask.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "START_METHOD", "forkserver")
        patch.setattr(caption, "PROCESSES", CONTEXT)
        yield
