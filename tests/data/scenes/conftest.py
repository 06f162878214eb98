"""The scenes dataset at its default size, made once for all workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from itr.data.scenes.make import prepare


@pytest.fixture(scope="session")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset at its default size; tests may add items to it and change nothing else."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with FileLock(root / "default-scenes.lock"):
        return prepare(root / "default-scenes")
