"""Reads and writes checkpoints: one safetensors file, with a JSON header that describes the model.

Files are written atomically. Reading executes no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from itr.errors import CheckpointError, TrainingError
from itr.files import atomic_path

FORMAT = "itr-checkpoint"
FORMAT_VERSION = 1


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``meta`` (JSON-serializable) to ``path`` atomically.

    Raises TrainingError if the disk is full or not writable; an older file at ``path`` is then
    unchanged.
    """
    header = {"format": FORMAT, "version": str(FORMAT_VERSION), "meta": json.dumps(meta)}
    try:
        with atomic_path(path) as temporary:
            save_file(_storable(tensors), temporary, metadata=header)
            os.chmod(temporary, 0o666 & ~_umask())  # safetensors creates files of mode 0600
    except (OSError, SafetensorError) as error:
        state = "the previous one is unchanged" if path.exists() else "nothing was written"
        raise TrainingError(
            f"{path}: the checkpoint could not be saved ({error}); {state}. Free some space or "
            "choose another disk with out=DIR, then resume with resume=auto"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory (safetensors refuses shared storage)."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        if value.numel() and value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        stored[name] = value
    return stored


def _open(path: Path, device: str = "cpu") -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint (*.safetensors)")
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({error}); "
            "the file is truncated or not in safetensors format"
        ) from error


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint. Raises CheckpointError if the file is not one of ours."""
    with _open(path) as handle:
        header = handle.metadata() or {}
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of this suite; convert an authors' "
            "checkpoint with: itr official convert IN OUT"
        )
    if int(header["version"]) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {header['version']}, but this version of the suite reads "
            f"formats up to {FORMAT_VERSION}; update the suite"
        )
    return json.loads(header["meta"])


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by name without the prefix."""
    with _open(path) as handle:
        names = [name for name in handle.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name[len(prefix) :]: handle.get_tensor(name) for name in names}


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load ``weights`` strictly.

    Raises CheckpointError that lists every missing weight, every unexpected weight and every weight
    of another shape. ``source`` names their origin in that message.
    """
    expected = model.state_dict()
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    shapes = [
        f"{name} {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(weights))
        if expected[name].shape != weights[name].shape
    ]
    if missing or unexpected or shapes:
        lines = [f"{source}: the weights do not fit this model"]
        for title, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes)):
            if names:
                lines.append(f"  {title} ({len(names)}): {', '.join(names)}")
        raise CheckpointError("\n".join(lines))
    model.load_state_dict(dict(weights))
