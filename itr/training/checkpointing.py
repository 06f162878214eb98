"""Checkpoints of a run: ``best`` holds weights, ``last`` everything needed to resume exactly."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr import checkpoint, parallel
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import CheckpointError, TrainingError
from itr.models.base import Model
from itr.training.console import log
from itr.training.optim import load_state_tensors, state_tensors
from itr.training.parameters.weight_average import WeightAverage

BEST, LAST, PREVIOUS = "best.safetensors", "last.safetensors", "previous.safetensors"
DAMAGED = "last.damaged"
RESUMED = ("clock", "scaler", "world", "device", "best", "window")  # of the header of `LAST`


def resolve_checkpoint(path: Path, key: str = "checkpoint") -> Path:
    """The checkpoint file for ``path``: itself if it is a file, else the best of a run directory.

    ``key`` is the option that named it. Raises CheckpointError if there is none.
    """
    if path.is_file():
        return path
    for candidate in (path / "checkpoints" / BEST, path / BEST):
        if candidate.is_file():
            return candidate
    if not path.exists():
        raise CheckpointError(
            f"{key}={path}: does not exist; expected a run directory, a *.safetensors file "
            "of this suite, or an authors' checkpoint"
        )
    raise CheckpointError(
        f"{key}={path}: the folder has no checkpoints/{BEST}; a run writes it at its first "
        "validation"
    )


def check_space(folder: Path, model: Model, averaged: bool = False) -> tuple[int, int]:
    """Check that the disk can hold the checkpoints of a run in ``folder``.

    ``averaged``: ``last`` also holds an average of the weights.

    Returns the bytes of ``best`` and ``last``. Space that earlier checkpoints of the run occupy
    counts as free. Raises TrainingError if the disk is too small.
    """
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    sizes = {n: p.numel() * p.element_size() for n, p in model.named_parameters()}
    frozen: frozenset[str] = getattr(
        model, "frozen_weights", frozenset()
    )  # beside adapters: without moments
    moments = 2 * sum(size for name, size in sizes.items() if name not in frozen)
    best, last = weights, weights + moments + (sum(sizes.values()) if averaged else 0)
    needed = best + 3 * last  # last, previous, and a temporary file
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free, used = shutil.disk_usage(existing).free, _used_bytes(folder)
    if free + used < needed:
        reusable = f" (plus {used / 1e9:.2f} GB of this run's old checkpoints)" if used else ""
        raise TrainingError(
            f"{folder}: {free / 1e9:.2f} GB free{reusable}, but the checkpoints need "
            f"{needed / 1e9:.2f} GB (best {best / 1e9:.2f}, and {last / 1e9:.2f} each for last, "
            "previous and a temporary file). Free some space, or choose another disk with out=DIR"
        )
    return best, last


def temporary_files(folder: Path) -> list[Path]:
    """Temporary files and folders that a killed process left in the run directory ``folder``."""
    return [path for parent in (folder, folder / "checkpoints") for path in parent.glob(".*.tmp")]


def _used_bytes(folder: Path) -> int:
    """Bytes of the checkpoints in ``folder`` and of files that are deleted before the next one."""
    names = (folder / "checkpoints" / name for name in (BEST, LAST, PREVIOUS))
    inside = (path for draft in temporary_files(folder) for path in (draft, *draft.rglob("*")))
    stats = [path.stat() for path in (*names, *inside) if path.is_file()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())  # hard links count once


def save_best(path: Path, model: Model, meta: dict[str, Any]) -> None:
    """Write the weights and all that an evaluation needs."""
    checkpoint.write(path, {f"model/{k}": v for k, v in model.state_dict().items()}, meta)


def save_last(
    path: Path,
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clock: Clock,
    draws: Draws,
    meta: dict[str, Any],
    window: dict[str, Tensor],
    average: WeightAverage | None = None,
) -> None:
    """Write everything that evolves, on every rank; ``window`` holds sums that are not logged yet.

    Rank 0 writes. It renames the last checkpoint to `PREVIOUS` first.
    """
    rng = {"cpu": torch.get_rng_state(), "draws": draws.get_state()}
    if draws.generator.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state()
    rngs = parallel.all_gather_objects(rng)
    sums = parallel.all_gather_objects({key: value.cpu() for key, value in window.items()})
    if parallel.rank() != 0:
        return
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"optim/{k}": v for k, v in state_tensors(model, optimizer).items()}
    if average is not None:
        tensors |= {f"ema/{k}": v for k, v in average.tensors().items()}
    for rank, states in enumerate(rngs):
        tensors |= {f"{_rank_prefix(rank, 'rng')}{key}": value for key, value in states.items()}
        tensors |= {f"{_rank_prefix(rank, 'window')}{key}": v for key, v in sums[rank].items()}
    progress = {
        "clock": clock.state_dict(),
        "scaler": scaler.state_dict(),
        "world": parallel.world_size(),
        "device": draws.generator.device.type,
    }
    _keep_previous(path)
    checkpoint.write(path, tensors, {**meta, **progress})


def _rank_prefix(rank: int, what: str) -> str:
    """Prefix of the tensors of one rank in a checkpoint."""
    return f"{what}{rank or ''}/"


def _keep_previous(path: Path) -> None:
    """Hard-link the file at ``path`` as `PREVIOUS`, so that it survives its replacement."""
    if not path.exists():
        return
    link = path.with_name(f".{PREVIOUS}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        os.replace(path, path.with_name(PREVIOUS))
    else:
        os.replace(link, path.with_name(PREVIOUS))
        link.unlink(missing_ok=True)  # rename does nothing if both already link to one file


def find_resumable(folder: Path, verify: bool = True) -> Path | None:
    """The checkpoint to resume from; None if there is none yet.

    With ``verify`` the checksums of all tensors are compared. If the last checkpoint is damaged,
    it is renamed to `DAMAGED`, the previous one is used and a warning logged. Raises
    CheckpointError if both are damaged.
    """
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    faults = []
    for path in paths:
        try:
            _check_resumable(path, verify)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults:
            log.warning("%s; resuming from the previous checkpoint, %s", faults[0], path)
            with contextlib.suppress(OSError):  # the next save would make it the previous one
                os.replace(folder / LAST, folder / DAMAGED)
        return path
    if not paths:
        return None
    other = "neither is the previous one" if len(faults) > 1 else "there is no previous one"
    message = f"{faults[0]}; it cannot be resumed from, and {other}. "
    try:
        checkpoint.verify(folder / BEST)
    except CheckpointError:
        raise CheckpointError(f"{message}To start over, pass overwrite=true") from None
    raise CheckpointError(
        f"{message}The selected weights are sound: start from them in another folder with "
        f"model.init={folder / BEST} out=DIR, or evaluate them with checkpoint={folder / BEST}"
    )


def _check_resumable(path: Path, verify: bool) -> None:
    """Raises CheckpointError if training cannot be resumed from ``path``."""
    meta = checkpoint.read_meta(path)
    if missing := [key for key in RESUMED if key not in meta]:
        raise CheckpointError(f"{path}: cannot be resumed from, it has no {', '.join(missing)}")
    try:
        Clock.from_state(meta["clock"])
    except TypeError as error:
        raise CheckpointError(f"{path}: damaged, its clock cannot be read ({error})") from error
    if verify:
        checkpoint.verify(path)


def load_last(
    path: Path,
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    draws: Draws,
    average: WeightAverage | None = None,
) -> tuple[Clock, dict[str, Any], dict[str, Tensor]]:
    """Restore what `save_last` wrote. Returns the clock, the metadata and the sums not logged yet.

    Warns about what cannot continue exactly on another number of ranks or kind of device.
    """
    meta = checkpoint.read_meta(path)
    if "clock" not in meta:
        raise CheckpointError(f"{path}: holds weights only; resume needs a run's {LAST}")
    tensors = checkpoint.read_tensors(path, verify=False)  # `find_resumable` has done it

    def below(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    checkpoint.load_weights(model, below("model/"), str(path))
    load_state_tensors(model, optimizer, below("optim/"))
    if average is not None:
        average.load(below("ema/"), str(path))
    if scaler.is_enabled() and meta["scaler"]:
        scaler.load_state_dict(meta["scaler"])
    kind = draws.generator.device.type
    _warn_if_moved(path, meta["world"], meta["device"], kind)
    rank = parallel.rank() if parallel.rank() < meta["world"] else 0
    same_rank, rng = rank == parallel.rank(), below(_rank_prefix(rank, "rng"))
    if same_rank:
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and kind == "cuda":
            torch.cuda.set_rng_state(rng["cuda"])
    if (same_rank or model.shares_batch_loss) and meta["device"] == kind:
        draws.set_state(rng["draws"])
    device = next(model.parameters()).device
    sums = {k: v.to(device) for k, v in below(_rank_prefix(rank, "window")).items()}
    return Clock.from_state(meta["clock"]), meta, sums


def _warn_if_moved(path: Path, world: int, written_on: str, kind: str) -> None:
    """Warn if ``path`` was written by another number of processes or on another kind of device."""
    if world != parallel.world_size():
        log.warning(
            "%s was written by %d processes, and this run has %d: data order, losses and schedule "
            "continue unchanged; dropout, and whatever the method computes per device, differ "
            "from here on",
            path,
            world,
            parallel.world_size(),
        )
    if written_on != kind:
        log.warning(
            "%s was written on device=%s, and this run uses device=%s: data order and schedule "
            "continue unchanged; rounding, dropout and the method's random draws differ from here "
            "on",
            path,
            written_on,
            kind,
        )
