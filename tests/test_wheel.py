"""The wheel: built from a copy of the sources, installed in a folder, used from an empty one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY

SOURCES = ("conf", "itr", "hydra_plugins", "pyproject.toml", "README.md", "LICENSE")


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Standard output of ``python ARGUMENTS`` in ``cwd`` with only ``path`` on PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from; setuptools writes beside its sources."""
    folder = tmp_path_factory.mktemp("clone")
    caches = shutil.ignore_patterns("__pycache__", "local")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=caches)
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    python("-m", "pip", "wheel", "-q", *offline, "-w", str(out), ".", cwd=clone)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_that_the_code_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    read_only = (".yaml", ".j2", ".py")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in ("itr", "hydra_plugins")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in read_only and "conf" not in path.relative_to(ROOT).parts
    }
    wanted |= {
        f"itr/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "conf").rglob("*.yaml")
        if "local" not in path.relative_to(ROOT).parts
    }
    assert len(wanted) > 200 and not wanted - names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "conf/"))]
    (scripts,) = (name for name in names if name.endswith("entry_points.txt"))
    assert b"itr = itr.cli:main" in zipfile.ZipFile(wheel).read(scripts)


def test_the_installed_wheel_trains_and_evaluates(wheel: Path, world: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    offline = ["--no-deps", "--no-index", "--target", str(site)]
    python("-m", "pip", "install", "-q", *offline, str(wheel), cwd=empty)
    where = "import itr, itr.compose; print(itr.__file__); print(itr.compose.CONF)"
    for line in python("-c", where, cwd=empty, path=site).split():
        assert Path(line).is_relative_to(site)
    data = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    steps = ["trainer.max_steps=3", "out=run"]
    again = ["checkpoint=run", "split=test", "device=cpu", "out=again"]
    both = f"{['train', *TINY, *data, *steps]}, {['eval', *again]}"
    commands = f"from itr.cli import main; print([main(words) for words in ({both})])"
    assert python("-c", commands, cwd=empty, path=site).splitlines()[-1] == "[0, 0]"
    results = json.loads((empty / "run" / "results.json").read_text())
    assert results["updates"] == 3
    evaluated = json.loads((empty / "again" / "results.json").read_text())
    assert evaluated["test/rsum"] == results["test/rsum"]


def test_a_second_clone_reads_its_own_configuration(clone: Path, tmp_path: Path) -> None:
    """Even where another clone is installed in the environment."""
    where = "import itr.compose; print(itr.compose.CONF.resolve())"
    printed = python("-c", where, cwd=tmp_path, path=clone).strip()
    assert Path(printed) == (clone / "conf").resolve()
