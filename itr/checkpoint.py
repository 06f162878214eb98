"""One checkpoint = one safetensors file whose header holds the JSON that makes it self-contained.

The file is written under a temporary name, flushed to disk and renamed, so a reader finds the old
file or the new one and never half of one. Reading executes no code.
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

FORMAT = "itr-checkpoint"
FORMAT_VERSION = 1


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``meta`` (JSON-able) to ``path`` atomically.

    Raises TrainingError if the disk is full or not writable; what stood at ``path`` survives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    header = {"format": FORMAT, "version": str(FORMAT_VERSION), "meta": json.dumps(meta)}
    try:
        save_file(_storable(tensors), temporary, metadata=header)
        os.chmod(temporary, 0o666 & ~_umask())  # safetensors makes it readable by its owner only
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        state = "the one written before is untouched" if path.exists() else "nothing was written"
        raise TrainingError(
            f"{path}: the checkpoint could not be saved ({error}); {state}. Free some space or "
            "choose another disk with out=DIR, then go on with resume=auto"
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
            f"{path}: not a readable checkpoint ({error}); it is truncated or no safetensors file"
        ) from error


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint. Raises CheckpointError if the file is not one of ours."""
    with _open(path) as handle:
        header = handle.metadata() or {}
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of this suite; convert an authors' "
            "file with: itr official convert IN OUT"
        )
    if int(header["version"]) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {header['version']}, this version reads up to "
            f"{FORMAT_VERSION}; update the suite"
        )
    return json.loads(header["meta"])


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by the rest of their names."""
    with _open(path) as handle:
        names = [name for name in handle.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name[len(prefix) :]: handle.get_tensor(name) for name in names}


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load ``weights`` strictly. Raises CheckpointError that lists every missing, unexpected and
    misshapen weight."""
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    unexpected = sorted(set(weights) - set(own))
    shapes = [
        f"{name} {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(weights))
        if own[name].shape != weights[name].shape
    ]
    if missing or unexpected or shapes:
        lines = [f"{source}: the weights do not fit this model"]
        for title, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes)):
            if names:
                lines.append(f"  {title} ({len(names)}): {', '.join(names)}")
        raise CheckpointError("\n".join(lines))
    model.load_state_dict(dict(weights))
