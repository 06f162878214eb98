"""What a run must remember to go on exactly: weights, optimiser, clock, chance, and what it saw."""

from __future__ import annotations

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
from itr.models.base import RetrievalModel
from itr.training.console import log
from itr.training.optim import load_state_tensors, state_tensors

BEST, LAST, PREVIOUS = "best.safetensors", "last.safetensors", "previous.safetensors"


def resolve(path: Path, key: str = "checkpoint") -> Path:
    """The checkpoint file that ``path`` means, the value of ``key``: a file, or the best of a run
    directory.

    Raises CheckpointError that says what was looked for.
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
        f"{key}={path}: no checkpoints/{BEST} in this folder; has the run reached its first "
        "validation?"
    )


def check_space(folder: Path, model: RetrievalModel) -> tuple[int, int]:
    """Bytes of ``best`` and ``last`` of a run in ``folder``. Raises TrainingError if the disk
    cannot hold them while one is being replaced; what a run that goes on has there is counted."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    best, last = weights, weights + moments
    needed = best + 3 * last
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free, there = shutil.disk_usage(existing).free, _held(folder)
    if free + there < needed:
        had = f" beside the {there / 1e9:.2f} GB that they have" if there else ""
        raise TrainingError(
            f"{folder}: {free / 1e9:.2f} GB free{had}, but the checkpoints need "
            f"{needed / 1e9:.2f} GB "
            f"(best {best / 1e9:.2f}, last {last / 1e9:.2f}, the one before it, and one more while "
            "it is replaced); "
            "free some space or choose another disk with out=DIR"
        )
    return best, last


def half_written(folder: Path) -> list[Path]:
    """What a process that was killed while it saved has left in the run directory ``folder``."""
    return [path for place in (folder, folder / "checkpoints") for path in place.glob(".*.tmp")]


def _held(folder: Path) -> int:
    """Bytes of the checkpoints in ``folder``, and of what is deleted before the first new one."""
    names = (folder / "checkpoints" / name for name in (BEST, LAST, PREVIOUS))
    found = [path.stat() for path in (*names, *half_written(folder)) if path.is_file()]
    return sum({stat.st_ino: stat.st_size for stat in found}.values())


def save_best(path: Path, model: RetrievalModel, meta: dict[str, Any]) -> None:
    """Weights alone, with all that evaluation needs."""
    checkpoint.write(path, {f"model/{k}": v for k, v in model.state_dict().items()}, meta)


def save_last(
    path: Path,
    model: RetrievalModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clock: Clock,
    draws: Draws,
    meta: dict[str, Any],
    window: dict[str, Tensor],
) -> None:
    """Everything that evolves, on every rank; ``window`` holds sums that were not logged yet.

    Rank 0 writes, and keeps what was the last checkpoint as `PREVIOUS`.
    """
    chance = {"cpu": torch.get_rng_state(), "draws": draws.get_state()}
    if draws.generator.device.type == "cuda":
        chance["cuda"] = torch.cuda.get_rng_state()
    everyone = parallel.all_gather_objects(chance)
    sums = parallel.all_gather_objects({key: value.cpu() for key, value in window.items()})
    if parallel.rank() != 0:
        return
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"optim/{k}": v for k, v in state_tensors(model, optimizer).items()}
    for rank, states in enumerate(everyone):
        tensors |= {f"{_of(rank, 'rng')}{key}": value for key, value in states.items()}
        tensors |= {f"{_of(rank, 'window')}{key}": v for key, v in sums[rank].items()}
    progress = {
        "clock": clock.state_dict(),
        "scaler": scaler.state_dict(),
        "world": parallel.world_size(),
        "device": draws.generator.device.type,
    }
    _keep_previous(path)
    checkpoint.write(path, tensors, {**meta, **progress})


def _of(rank: int, what: str) -> str:
    """Where in a checkpoint something of one rank lies."""
    return f"{what}{rank or ''}/"


def _keep_previous(path: Path) -> None:
    """A second name for the file at ``path``, under which it stays when it is replaced."""
    if not path.exists():
        return
    second = path.with_name(f".{PREVIOUS}.tmp")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without second names
        os.replace(path, path.with_name(PREVIOUS))
    else:
        os.replace(second, path.with_name(PREVIOUS))
        second.unlink(missing_ok=True)  # two names of one file already: renaming did nothing


def find_last(folder: Path) -> Path | None:
    """The checkpoint to go on from; None if there is none yet.

    Where the last one cannot be read, the one before it, which is logged. Raises CheckpointError
    if neither can.
    """
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    broken = ""
    for path in found:
        try:
            checkpoint.read_meta(path)
        except CheckpointError as error:
            broken = broken or str(error)
            continue
        if broken:
            log.warning("%s; going on from the one before, %s", broken, path)
        return path
    if found:
        raise CheckpointError(f"{broken}; no other to go on from; overwrite=true starts again")
    return None


def load_last(
    path: Path,
    model: RetrievalModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    draws: Draws,
) -> tuple[Clock, dict[str, Any], dict[str, Tensor]]:
    """Put everything back as `save_last` saw it; returns the clock, the checkpoint's JSON and the
    sums that were not logged yet. On another number of ranks, or another kind of device, it says
    what goes on differently."""
    meta = checkpoint.read_meta(path)
    if "clock" not in meta:
        raise CheckpointError(f"{path}: holds weights only; resume needs a run's {LAST}")
    tensors = checkpoint.read_tensors(path)

    def below(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    checkpoint.load_weights(model, below("model/"), str(path))
    load_state_tensors(model, optimizer, below("optim/"))
    if scaler.is_enabled() and meta["scaler"]:
        scaler.load_state_dict(meta["scaler"])
    world, rank = meta.get("world", 1), parallel.rank()
    if world != parallel.world_size():
        log.warning(
            "%s was written by %d processes, and now there are %d: the order of the data, the "
            "losses and the schedule stay; dropout, and whatever the method does on each device "
            "for itself, differ from here on",
            path,
            world,
            parallel.world_size(),
        )
    kind = draws.generator.device.type
    written_on = meta.get("device", kind)
    if written_on != kind:
        log.warning(
            "%s was written on device=%s, and this is %s: the order of the data and the schedule "
            "stay; rounding, dropout and what the method draws differ from here on",
            path,
            written_on,
            kind,
        )
    known = rank if rank < world else 0
    chance = below(_of(known, "rng"))
    if known == rank:
        torch.set_rng_state(chance["cpu"])
        if "cuda" in chance and kind == "cuda":
            torch.cuda.set_rng_state(chance["cuda"])
    if (known == rank or model.one_loss) and written_on == kind:
        draws.set_state(chance["draws"])
    device = next(model.parameters()).device
    sums = {k: v.to(device) for k, v in below(_of(known, "window")).items()}
    return Clock.from_state(meta["clock"]), meta, sums
