"""Reads and writes checkpoints: one safetensors file, with a JSON header that describes the model.

Files are written atomically. Reading executes no code. The header holds a checksum of every tensor
and of itself, so that a damaged file is refused. Checksums find damage, they stop no forger.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from itr.errors import CheckpointError, TrainingError, first_of
from itr.files import atomic_path, parse_json, private_folder

FORMAT = "itr-checkpoint"
FORMAT_VERSION = 2
CHECKSUMS, HEADER_CHECKSUM = "checksums", "header_checksum"
# Fields of the JSON of a checkpoint with a model, and of the configuration in it. Those of
# `OTHER_FIELDS` and `CONFIG_FIELDS` may be absent.
MODEL_FIELDS = {
    "model_name": str,
    "model_target": str,
    "model_config": dict,
    "facts": dict,
    "weights": dict,
}
OTHER_FIELDS = {
    "loss": dict,
    "tokenizer": str,
    "precision": str,
    **dict.fromkeys(("config", "best", "depth", "task_state"), dict),
}
CONFIG_FIELDS = {**dict.fromkeys(("data", "task", "loss", "rerank"), dict), "tie_break": str}


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``meta`` (JSON-serializable) to ``path`` atomically.

    Raises TrainingError if the disk is full or not writable; an older file at ``path`` is then
    unchanged.
    """
    stored = _storable(tensors)
    header = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "meta": json.dumps(meta),
        CHECKSUMS: json.dumps({name: _checksum(name, value) for name, value in stored.items()}),
    }
    header[HEADER_CHECKSUM] = _header_checksum(header)
    try:
        with atomic_path(path) as temporary, private_folder(path) as folder:
            save_file(stored, folder / path.name, metadata=header)
            os.replace(folder / path.name, temporary)
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


def _checksum(name: str, tensor: Tensor) -> str:
    """CRC-32 of a contiguous CPU tensor with its name, dtype and shape, as 8 hexadecimal digits."""
    start = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    return f"{zlib.crc32(content, start):08x}"


def _header_checksum(header: Mapping[str, str]) -> str:
    """CRC-32 of all fields of ``header`` but its own checksum, as 8 hexadecimal digits."""
    fields = sorted((key, value) for key, value in header.items() if key != HEADER_CHECKSUM)
    return f"{zlib.crc32(json.dumps(fields).encode()):08x}"


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


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged, {what}; expected the file as it was written. Copy it again, or use "
        "another checkpoint"
    )


def _header(path: Path) -> dict[str, str]:
    """The header of one of our files, checked. Raises CheckpointError."""
    with _open(path) as handle:
        header: dict[str, str] = handle.metadata() or {}
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of this suite; convert an authors' "
            "checkpoint with: itr official convert IN OUT"
        )
    version = header.get("version", "")
    if version.isdecimal() and int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}, but this version of the suite reads formats up "
            f"to {FORMAT_VERSION}; update the suite"
        )
    if version.isdecimal() and int(version) < FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}, of an older version of the suite, has no "
            f"checksums; expected format {FORMAT_VERSION}. Train again, or evaluate it with the "
            "version that wrote it"
        )
    if header.get(HEADER_CHECKSUM) != _header_checksum(header):
        raise _damaged(path, "its header does not match its checksum")
    return header


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint. Raises CheckpointError if it is damaged or not one of ours."""
    try:
        meta = parse_json(_header(path)["meta"])
    except (KeyError, ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise _damaged(path, f"its header holds a {type(meta).__name__}")
    return meta


def read_model_meta(path: Path) -> dict[str, Any]:
    """`read_meta` of a checkpoint that holds a model; its fields have the types of `MODEL_FIELDS`.

    `OTHER_FIELDS` that are absent are empty. Raises CheckpointError as `read_meta`, and for another
    kind of file.
    """
    meta = read_meta(path)
    if meta.get("model_name") is None:
        raise CheckpointError(
            f"{path}: the file contains no model; expected a checkpoint or a run directory"
        )
    meta = {key: value for key, value in meta.items() if value is not None}
    config = meta.get("config", {})
    for fields, node, where in (
        (MODEL_FIELDS | OTHER_FIELDS, meta, ""),
        (CONFIG_FIELDS, config if isinstance(config, dict) else {}, "config."),
    ):
        for key, kind in fields.items():
            absent = node.get(key) is None and key not in MODEL_FIELDS
            if not absent and not isinstance(node.get(key), kind):
                found = type(node[key]).__name__ if key in node else "nothing"
                raise _damaged(
                    path, f"'{where}{key}' in its header is {found}, not {kind.__name__}"
                )
    for key in ("weights", "depth"):
        if not all(isinstance(value, int | float) for value in meta.get(key, {}).values()):
            raise _damaged(path, f"'{key}' in its header holds something other than numbers")
    empty: dict[str, Any] = {key: {} for key, kind in OTHER_FIELDS.items() if kind is dict}
    return {"loss": None, "tokenizer": None, **empty, **meta}


def shapes(path: Path, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors whose names start with ``prefix``; no tensor is read."""
    with _open(path) as handle:
        return {
            name[len(prefix) :]: tuple(handle.get_slice(name).get_shape())
            for name in handle.keys()  # noqa: SIM118
            if name.startswith(prefix)
        }


def read_tensors(path: Path, prefix: str = "", verify: bool = True) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by name without the prefix.

    With ``verify`` their checksums are compared. Raises CheckpointError that names damaged tensors.
    """
    found = _tensors(path, prefix, verify)
    return {name[len(prefix) :]: tensor for name, tensor in found}


def verify(path: Path) -> int:
    """Compare the header and every tensor of ``path`` with its checksums.

    Returns the number of tensors. Raises CheckpointError that names what is damaged.
    """
    read_meta(path)
    return sum(1 for _ in _tensors(path, "", True))


def _tensors(path: Path, prefix: str, verify: bool) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, one at a time. Raises CheckpointError at the end if some are damaged."""
    expected = _checksums(path) if verify else {}
    damaged = []
    try:
        with _open(path) as handle:
            stored = list(handle.keys())
            for name in stored:
                if name.startswith(prefix):
                    tensor = handle.get_tensor(name)
                    if verify and _checksum(name, tensor) != expected.get(name):
                        damaged.append(name)
                    yield name, tensor
    except (SafetensorError, OSError) as error:
        raise _damaged(path, f"its tensors cannot be read ({error})") from error
    lost = expected.keys() - set(stored)
    damaged += sorted(name for name in lost if name.startswith(prefix))
    if damaged:
        raise _damaged(
            path,
            f"{len(damaged)} of its tensors do not match their checksums: {first_of(damaged, 10)}",
        )


def _checksums(path: Path) -> dict[str, str]:
    try:
        return dict(parse_json(_header(path)[CHECKSUMS]))
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, f"its checksums cannot be read ({error})") from error


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load ``weights`` strictly.

    Raises CheckpointError that lists every missing weight, every unexpected weight and every weight
    of another shape. ``source`` names their origin in that message.
    """
    require_fit({name: tuple(value.shape) for name, value in weights.items()}, model, source)
    model.load_state_dict(dict(weights))


def require_fit(found: Mapping[str, tuple[int, ...]], model: torch.nn.Module, source: str) -> None:
    """Raise CheckpointError unless ``found``, name -> shape, are the weights of ``model``."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    other = [
        f"{name} {found[name]}, expected {expected[name]}"
        for name in sorted(set(expected) & set(found))
        if expected[name] != found[name]
    ]
    if missing or unexpected or other:
        lines = [f"{source}: the weights do not fit this model"]
        for title, names in (("missing", missing), ("unexpected", unexpected), ("shape", other)):
            if names:
                lines.append(f"  {title} ({len(names)}): {', '.join(names)}")
        raise CheckpointError("\n".join(lines))
