"""What a run must remember to go on exactly: weights, optimiser, clock, chance, and what it saw."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr import checkpoint
from itr.clock import Clock
from itr.draws import Draws
from itr.errors import CheckpointError, TrainingError
from itr.models.base import RetrievalModel
from itr.training.optim import load_state_tensors, state_tensors

BEST, LAST = "best.safetensors", "last.safetensors"


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
    """Bytes of ``best`` and ``last``. Raises TrainingError if the disk cannot hold them while one
    is being replaced."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    best, last = weights, weights + moments
    needed = best + 2 * last
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise TrainingError(
            f"{folder}: {free / 1e9:.2f} GB free, but the checkpoints need {needed / 1e9:.2f} GB "
            f"(best {best / 1e9:.2f}, last {last / 1e9:.2f}, and one more while it is replaced); "
            "free some space or choose another disk with out=DIR"
        )
    return best, last


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
) -> None:
    """Everything that evolves."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"optim/{k}": v for k, v in state_tensors(model, optimizer).items()}
    tensors["rng/cpu"] = torch.get_rng_state()
    tensors["rng/draws"] = draws.get_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    progress = {"clock": clock.state_dict(), "scaler": scaler.state_dict()}
    checkpoint.write(path, tensors, {**meta, **progress})


def load_last(
    path: Path,
    model: RetrievalModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    draws: Draws,
) -> tuple[Clock, dict[str, Any]]:
    """Put everything back as `save_last` saw it; returns the clock and the checkpoint's JSON."""
    meta = checkpoint.read_meta(path)
    if "clock" not in meta:
        raise CheckpointError(f"{path}: holds weights only; resume needs a run's {LAST}")
    tensors = checkpoint.read_tensors(path)

    def below(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    checkpoint.load_weights(model, below("model/"), str(path))
    load_state_tensors(model, optimizer, below("optim/"))
    scaler.load_state_dict(meta["scaler"])
    torch.set_rng_state(tensors["rng/cpu"])
    draws.set_state(tensors["rng/draws"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    return Clock.from_state(meta["clock"]), meta
