"""Run directories: named by a hash of the configuration, locked while a job trains in them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from itr import checkpoint, parallel
from itr.data.checks.fingerprint import changed_splits
from itr.errors import CheckpointError, ConfigError, DataError, TrainingError, first_of
from itr.files import atomic_write, parse_json, parse_yaml
from itr.jobs.lock import RunLock
from itr.models.build import NO_LOSS
from itr.results.results_file import RESULTS, read_results
from itr.results.run_folder import CONFIG, DATA, LOCK, VERSIONS
from itr.training.checkpointing import BEST, LAST, PREVIOUS, temporary_files
from itr.training.console import log
from itr.training.faults.heartbeat import RANKS

ROOT = Path("runs")
# Settings of a machine or a user's folders. Runs that differ only in these are the same run.
IGNORED_KEYS = (
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
    "runtime.verify_checkpoints",
    "trainer.checkpoint_minutes",
    "rerank.batch_size",
    "tracker",
    "data.root",
    "data.images",
    "data.cache",
)
# Paths of which only the file name is compared. Their content is in the hash of the data, which is
# compared when a run is resumed.
FILE_KEYS = ("data.train", "data.val", "data.test", "data.second_text", "data.noise_file")
SHARDS_KEY = "data.shards"  # compared by name if it is a pattern; a folder is like data.root
# Values that change no number, by key. Any other value makes a different run.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
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
    """The part of ``values`` that decides the numbers, as flat ``key -> value``.

    Leaves out `IGNORED_KEYS` and `NEUTRAL_VALUES`, and reduces `FILE_KEYS` to file names.
    """
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            path = f"{prefix}{key}"
            if path in IGNORED_KEYS:
                continue
            if path in NEUTRAL_VALUES and value in NEUTRAL_VALUES[path]:
                continue
            if isinstance(value, Mapping) and value:
                walk(value, f"{path}.")
            elif path in FILE_KEYS and value is not None:
                flat[path] = Path(str(value)).name
            elif path.startswith(SHARDS_KEY) and value is not None:
                flat[path] = Path(str(value)).name if str(value).endswith(".tar") else None
            else:
                flat[path] = value

    walk(values, "")
    return flat


def config_hash(values: Mapping[str, Any]) -> str:
    """Eight hex digits of a hash of `identity`."""
    text = json.dumps(identity(values), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_path(values: Mapping[str, Any]) -> Path:
    """``out`` if it is set, else runs/<model>-<data>-<task>-<loss>-<hash>; a model without slots
    has no loss of its own to name."""
    if values.get("out"):
        return Path(values["out"])
    groups = ("model", "data", "task", "loss")
    names = [values[group]["name"] for group in groups if values[group]["name"] != NO_LOSS]
    return ROOT / f"{'-'.join(names)}-{config_hash(values)}"


def open_run(values: Mapping[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """The run directory, and its results if the run is already finished (None otherwise).

    Raises ConfigError if the directory holds an unfinished run (without ``resume=auto`` or
    ``overwrite=true``), a run of another configuration, or other files.
    """
    path = run_path(values)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"out={path}: is a file; pass the folder of a run, out=DIR")
    config, meta = path / CONFIG, checkpoint_meta(path)
    if not path.exists() or _is_empty(path):
        return path, None
    if not config.is_file() and meta is None:
        raise ConfigError(
            f"out={path}: the folder holds files but no run (no {CONFIG}); choose another folder"
        )
    if values.get("overwrite"):
        with RunLock(path):
            _clear(path)
        return path, None
    _refuse_other_run(path, meta, values)
    if (path / RESULTS).is_file():
        return path, read_results(path)
    with RunLock(path):  # an error about a running job comes before one about resume
        pass
    if values.get("resume") == "auto":
        return path, None
    other = "train into another folder with out=DIR" if meta else "pass overwrite=true"
    raise ConfigError(
        f"{path}: holds an unfinished run of this configuration; pass resume=auto to continue it. "
        f"To start over, {other}"
    )


def _is_empty(path: Path) -> bool:
    """Whether the folder ``path`` holds nothing but what a job killed at its start leaves."""
    return all(
        child.name == LOCK or (child.name.startswith(".") and child.suffix == ".tmp")
        for child in path.iterdir()
    )


def checkpoint_meta(path: Path) -> dict[str, Any] | None:
    """The header of a readable checkpoint of the run in ``path``; None if there is none.

    It holds the configuration (``config``) and the content of each split (``manifest``).
    """
    for name in (LAST, PREVIOUS, BEST):
        try:
            meta = checkpoint.read_meta(path / "checkpoints" / name)
        except CheckpointError:
            continue
        if isinstance(meta.get("config"), dict):
            return meta
    return None


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Hold the lock of the run directory ``path``, and delete what a killed job left in it.

    Raises ConfigError on all ranks if another job trains there.
    """
    with ExitStack() as stack:

        def acquire() -> None:
            stack.enter_context(RunLock(path))
            for draft in temporary_files(path):
                if draft.is_dir():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink(missing_ok=True)
            shutil.rmtree(path / RANKS, ignore_errors=True)

        parallel.broadcast_from_rank0(acquire)  # rank 0 holds the lock for all ranks
        yield


def _clear(path: Path) -> None:
    """Delete a run except for its lock file, which another job may have opened."""
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != LOCK:
            child.unlink()


def _refuse_other_run(
    path: Path, meta: Mapping[str, Any] | None, values: Mapping[str, Any]
) -> None:
    """Raises ConfigError if the run in ``path`` has another configuration than ``values``.

    A damaged ``config.yaml`` is replaced by the one in ``meta``, the header of a checkpoint.
    """
    stored, fault = read_stored(path / CONFIG, parse_yaml)
    if stored is not None and not differences(stored, values):
        return
    if meta is not None and not differences(meta["config"], values):
        log.warning(
            "%s: %s; its configuration is restored from a checkpoint",
            path / CONFIG,
            fault or "damaged, it differs from the configuration in the checkpoints",
        )
        return
    before = meta["config"] if meta is not None else stored
    if before is None:  # nothing was trained, so there is nothing to lose
        log.warning("%s: %s, and there is no checkpoint; the run starts over", path / CONFIG, fault)
        return
    advice = "choose another folder with out=DIR"
    if meta is None:
        advice += ", or pass overwrite=true"
    raise ConfigError(
        f"{path}: holds a run of another configuration "
        f"({first_of(differences(before, values), 5, '; ')}); {advice}"
    )


def differences(stored: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Keys whose values decide the numbers and differ, for a message."""
    before, now = identity(stored), identity(values)
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)} there, {now.get(key)} now" for key in keys]


def read_stored(file: Path, parse: Callable[[str], Any]) -> tuple[dict[str, Any] | None, str]:
    """The mapping in ``file``, or None and what is wrong with the file."""
    try:
        stored = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        return None, f"cannot be read ({str(error).splitlines()[0]})"
    if not isinstance(stored, dict):
        return None, "empty" if not stored else f"damaged, it holds a {type(stored).__name__}"
    return {str(key): value for key, value in stored.items()}, ""


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    """Write the resolved configuration and the versions of the environment.

    Raises TrainingError if they cannot be written.
    """
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    _write(path / CONFIG, text)
    _write(path / VERSIONS, json.dumps(environment(), indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    """Write ``text`` to ``file`` atomically, unless the file holds it already."""
    content = text.encode()
    with _write_errors(file.parent):
        if not file.is_file() or file.read_bytes() != content:
            with atomic_write(file) as handle:
                handle.write(content)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot write to the run directory ({error}); free some space, or choose "
            "another disk with out=DIR"
        ) from error


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest``, the content of each split.

    A damaged ``data.json`` is compared by what a checkpoint holds of it. Raises DataError if a
    resumed run began with other data, TrainingError if the file cannot be written.
    """
    file, meta = path / DATA, checkpoint_meta(path)
    before, fault = read_stored(file, parse_json)
    if before is None:
        before = (meta or {}).get("manifest")
        if file.is_file():
            what = "the data cannot be compared" if before is None else "restored from a checkpoint"
            log.warning("%s: %s; %s", file, fault, what)
    try:
        names = changed_splits(before or {}, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        log.warning("%s: damaged (%s); the data cannot be compared", file, error)
        names = []
    if names:
        advice = "restore it, or train on the new data in another folder with out=DIR"
        raise DataError(
            f"{', '.join(manifest[name]['source'] for name in names)}: not the data that the run "
            f"in {path} began with (content of {', '.join(names)} differs from {file}); {advice}"
        )
    _write(file, json.dumps(manifest, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Versions of the software and hardware that the numbers depend on."""
    versions: dict[str, Any] = {"python": platform.python_version(), "command": sys.argv}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    versions["platform"] = f"{platform.system()} {platform.machine()}"
    versions["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions["threads"] = torch.get_num_threads()
    versions["commit"] = _commit()
    return versions


def _commit() -> str | None:
    """The commit of this code; None without git or outside a repository."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return git.stdout.strip() or None
