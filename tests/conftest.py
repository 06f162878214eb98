"""Shared fixtures: a tiny dataset in real file formats, and the real entry points."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import itertools
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import itr.compose
from tests import processes
from tests.processes import PATIENCE, ROOT

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; read when torch starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CONF = ROOT / "conf"

# Files of half a minute or more, the longest first: one that starts last keeps a worker busy alone.
LONG_FILES = (
    "parity/test_parity.py",
    "jobs/test_default_job.py",
    "docs/test_pages.py",
    "models/test_compatibility.py",
    "tasks/test_item_tasks.py",
    "models/test_albef_tasks.py",
    "test_outside_package.py",
    "training/test_stop.py",
    "jobs/test_devices.py",
    "models/test_bad_input.py",
    "models/test_albef_starts.py",
    "official/test_albef_files.py",
    "training/test_trainer.py",
    "jobs/test_entry.py",
    "data/scenes/test_items.py",
    "data/layouts/shards/test_epochs.py",
    "test_literal.py",
    "test_wheel.py",
    "training/test_resume.py",
    "training/test_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first (with ``--no-loadscope-reorder``); else the order stays."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


# 60 training images and a model of about ten thousand weights.
TINY = (
    "data.prepare.train=60",
    "data.prepare.val=20",
    "data.prepare.test=20",
    "batch_size=30",
    "trainer.epochs=2",
    "trainer.log_every=3",
    "model.embed_size=32",
    "model.heads=4",
    "model.graph.warmup=8",
    "model.text.width=32",
    "model.text.mlp_width=32",
    "model.text.depth=1",
    "model.text.heads=2",
    "tracker=none",
    "device=cpu",
    "runtime.estimate=false",
)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the tiny scenes dataset, generated once per session."""
    from itr.data.scenes.make import prepare

    folder = tmp_path_factory.mktemp("world")
    prepare(folder / "data", train=60, val=20, test=20, seed=0)
    return folder


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fails a test that hangs."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"no end after {PATIENCE:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(PATIENCE))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def tiny(world: Path, tmp_path: Path) -> list[str]:
    """Overrides of a tiny run into ``tmp_path / run``."""
    return [
        *TINY,
        f"data.root={world / 'data'}",
        f"data.cache={world / 'cache'}",
        f"out={tmp_path / 'run'}",
    ]


def compose(config_name: str, overrides: list[str]) -> dict[str, Any]:
    """The resolved configuration, as the entry points compose it."""
    from itr.jobs.eval.config import keep_typed_options

    values = copy.deepcopy(_composed(config_name, tuple(overrides)))
    return keep_typed_options(values, overrides) if config_name == "eval" else values


@functools.cache
def _composed(config_name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    config = itr.compose.compose(config_name, overrides)
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@contextlib.contextmanager
def signal_at_update(update: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Sends a signal to this process inside the optimizer step ``update``, counted from here."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = itertools.count(1)

    def send(*_: object) -> None:
        if next(steps) == update:
            os.kill(os.getpid(), number)

    hook = register_optimizer_step_post_hook(send)
    try:
        yield
    finally:
        hook.remove()


def call(script: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run an entry point in a new process; output is captured as text."""
    return processes.run(str(ROOT / script), *arguments, cwd=cwd or ROOT, WANDB_MODE="offline")


def call_here(
    script: str, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`call` in this process, which saves seconds: for commands that end before they train."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    command = [str(ROOT / script), *arguments]
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        patch.setenv("COLUMNS", "160")
        patch.setenv("HYDRA_FULL_ERROR", "1")  # an entry point sets it for good
        patch.chdir(cwd or ROOT)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(command[0], run_name="__main__")
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
