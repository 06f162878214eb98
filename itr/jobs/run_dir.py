"""One run, one directory: its name comes from the configuration, its files say what happened."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from itr import parallel
from itr.data.checks.fingerprint import changed_splits
from itr.errors import ConfigError, DataError, TrainingError
from itr.jobs.lock import LOCK, RunLock
from itr.results.results_file import read_results
from itr.training.checkpointing import half_written
from itr.training.faults.heartbeat import RANKS

ROOT = Path("runs")
CONFIG, METRICS, RESULTS, LOG, VERSIONS, DATA = (
    "config.yaml",
    "metrics.jsonl",
    "results.json",
    "train.log",
    "versions.json",
    "data.json",
)
# What a machine or a user's folder decides; two runs that differ only here are the same run.
NOT_IDENTITY = (
    "out",
    "device",
    "devices",
    "nodes",
    "resume",
    "overwrite",
    "runtime.num_workers",
    "runtime.threads",
    "runtime.eval_batch_size",
    "runtime.deterministic",
    "runtime.collective_timeout",
    "runtime.activation_checkpointing",
    "runtime.compile",
    "runtime.estimate",
    "trainer.checkpoint_minutes",
    "rerank.batch_size",
    "tracker",
    "data.root",
    "data.images",
    "data.cache",
)
# Of these the file's own name counts, not the folder it lies in: what is in it is in the hash of
# the data, which a run that goes on compares.
FILES = ("data.train", "data.val", "data.test", "data.second_text", "data.noise_file")
SHARDS = "data.shards"  # the name of a pattern of tars; a folder of them is like data.root
# Settings with values that change no number, by key; another value is another run.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "runtime.sync_batchnorm": (True,),
    "runtime.cache_on_device": (None, "fp32"),
}
PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "timm",
    "numpy",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "wandb",
    "pillow",
    "pyarrow",
)


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as flat ``key -> value`` without what `NOT_IDENTITY` and `WITHOUT_EFFECT` name;
    `FILES` by name."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            path = f"{prefix}{key}"
            if path in NOT_IDENTITY:
                continue
            if path in WITHOUT_EFFECT and value in WITHOUT_EFFECT[path]:
                continue
            if isinstance(value, Mapping) and value:
                walk(value, f"{path}.")
            elif path in FILES and value is not None:
                flat[path] = Path(value).name
            elif path == SHARDS and value is not None:
                flat[path] = Path(value).name if str(value).endswith(".tar") else None
            else:
                flat[path] = value

    walk(values, "")
    return flat


def config_hash(values: Mapping[str, Any]) -> str:
    """Eight hex digits that name what `identity` holds."""
    text = json.dumps(identity(values), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_path(values: Mapping[str, Any]) -> Path:
    """``out`` where it is given, else runs/<model>-<data>-<loss>-<hash>."""
    if values.get("out"):
        return Path(values["out"])
    names = (values[group]["name"] for group in ("model", "data", "loss"))
    return ROOT / f"{'-'.join(names)}-{config_hash(values)}"


def open_run(values: Mapping[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """The run directory, and the results if it is finished already (then there is nothing to do).

    Raises ConfigError where the directory holds an unfinished run (without ``resume=auto`` or
    ``overwrite=true``), a run of another configuration, or something that is no run.
    """
    path = run_path(values)
    config = path / CONFIG
    if not path.exists() or all(child.name == LOCK for child in path.iterdir()):
        return path, None
    if not config.is_file():
        raise ConfigError(f"out={path}: the folder holds other files and no run; name another")
    if values.get("overwrite"):
        with RunLock(path):
            _clear(path)
        return path, None
    _refuse_other_run(path, config, values)
    if (path / RESULTS).is_file():
        return path, read_results(path)
    with RunLock(path):  # whoever trains there is named first
        pass
    if values.get("resume") == "auto":
        return path, None
    raise ConfigError(
        f"{path}: holds an unfinished run of this configuration; type resume=auto to go on with "
        "it, or overwrite=true to start again"
    )


@contextmanager
def taken(path: Path) -> Iterator[None]:
    """Inside, no other job trains in ``path``, and what a killed one left half written is gone.
    Raises ConfigError if another one does."""
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(RunLock(path))
            for half in half_written(path):
                half.unlink(missing_ok=True)
            shutil.rmtree(path / RANKS, ignore_errors=True)

        parallel.broadcast_from_rank0(take)  # rank 0 holds it for all
        yield


def _clear(path: Path) -> None:
    """Delete all of a run but its lock, which another job may be looking at."""
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != LOCK:
            child.unlink()


def _refuse_other_run(path: Path, config: Path, values: Mapping[str, Any]) -> None:
    stored = OmegaConf.to_container(OmegaConf.load(config))
    assert isinstance(stored, dict)
    before, now = identity({str(k): v for k, v in stored.items()}), identity(values)
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        shown = "; ".join(f"{k}: {before.get(k)} there, {now.get(k)} now" for k in differing[:5])
        raise ConfigError(
            f"{path}: holds a run of another configuration ({shown}); name another folder with "
            "out=DIR, or type overwrite=true"
        )


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    """Write the resolved configuration and the versions of the environment.

    Raises TrainingError if they cannot be written.
    """
    with _writing(path):
        OmegaConf.save(OmegaConf.create(dict(values)), path / CONFIG)
        (path / VERSIONS).write_text(json.dumps(environment(), indent=2) + "\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise TrainingError(
            f"{path}: the run directory cannot be written ({error}); free some space, or choose "
            "another disk with out=DIR"
        ) from error


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write what the splits hold. Raises DataError if a run that goes on began with other data,
    TrainingError if it cannot be written."""
    file = path / DATA
    if file.is_file() and (names := changed_splits(json.loads(file.read_text()), manifest)):
        raise DataError(
            f"{', '.join(manifest[name]['source'] for name in names)}: not the data that {path} "
            f"began with (content of {', '.join(names)} differs from {file}); put it back, or type "
            "overwrite=true to start again"
        )
    with _writing(path):
        file.write_text(json.dumps(manifest, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Versions of what the numbers depend on."""
    found: dict[str, Any] = {"python": platform.python_version(), "command": sys.argv}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["threads"] = torch.get_num_threads()
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    found["commit"] = git.stdout.strip() or None
    return found
