"""Reads weights that somebody else wrote, as data: no code runs, and no file takes more than it is.

Says what a file is that is no weights: a Git LFS pointer, a web page, an archive.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from itr.errors import CheckpointError
from itr.files import open_regular

HEAD = 512  # bytes that tell what a file is
NOT_WEIGHTS = (  # first bytes -> what the file is and what to do
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file; fetch it with: git lfs pull",
    ),
    (b"<!doctype", "a web page, not weights; download the file again (a login or quota page?)"),
    (b"<html", "a web page, not weights; download the file again (a login or quota page?)"),
    (b"<?xml", "an XML page, not weights; download the file again"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first: gunzip FILE (or tar xzf FILE)"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
)
# A file may declare somewhat more than it holds: tied weights, compressed names.
EXPANSION, IN_ENTRIES, IN_TENSORS = 4, 64 << 20, 512 << 20
MAX_NODES, MAX_DEPTH = 5_000_000, 200  # of the containers in a pickle
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # of a state dict, outermost first
ADVICE = re.compile(r"Please use|This file can still be loaded|Check the documentation|you can")
PARALLEL = "module."  # prefix that DataParallel adds

_scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
SAFE: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdU"},
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def require_weights(path: Path) -> None:
    """Raise CheckpointError if ``path`` cannot be opened or is visibly no weights."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise CheckpointError(f"{path}: an empty file; expected weights. Copy or download it again")
    for magic, what in NOT_WEIGHTS:
        if head.lstrip()[: len(magic)].lower() == magic.lower():
            raise CheckpointError(f"{path}: {what}")


def load_torch(path: Path) -> Any:
    """The content of a ``torch.save`` file: tensors, containers and plain values.

    Raises CheckpointError if the file is damaged, no weights, holds other objects, or would take
    far more memory than it has bytes.
    """
    require_weights(path)
    try:
        require_modest_zip(path)
        with torch.serialization.safe_globals(SAFE):
            payload = torch.load(path, map_location="cpu", weights_only=True)
        _require_modest(payload, path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch checkpoint ({reason_of(error)}); it is "
            "truncated, in another format, or holds objects other than tensors and numbers"
        ) from error
    return payload


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file (.safetensors, or of torch), without wrappers and ``module.``.

    Raises CheckpointError as `load_torch`, and if it holds no state dict.
    """
    require_weights(path)
    if path.suffix == ".safetensors":
        try:
            return unwrapped(load_file(path), path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from error
    return unwrapped(load_torch(path), path)


def unwrapped(payload: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in ``payload``, without the ``module.`` of DataParallel.

    Raises CheckpointError if there is none.
    """
    state = payload
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        keys = ", ".join(map(str, list(payload)[:8])) if isinstance(payload, Mapping) else ""
        held = f"it holds {keys}" if keys else f"it holds a {type(payload).__name__}"
        raise CheckpointError(
            f"{path}: contains no weights ({held}); expected names and tensors. An optimizer's "
            "file, or another part of a training run?"
        )
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name[len(PARALLEL) :]: value for name, value in tensors.items()}
    return tensors


def reason_of(error: BaseException) -> str:
    """What went wrong, on one line, without the advice to load the file unsafely."""
    text = str(error)
    if "WeightsUnpickler error:" in text:
        text = text.split("WeightsUnpickler error:", 1)[1]
    text = ADVICE.split(text)[0]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text.rstrip(" .,;") or type(error).__name__


def require_modest_zip(path: Path) -> None:
    """Raise CheckpointError for a zip that declares far more bytes than the file has."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    _require_expansion(declared, path, "its entries", IN_ENTRIES)


def _require_expansion(declared: int, path: Path, what: str, allowance: int) -> None:
    size = path.stat().st_size
    if declared > EXPANSION * size + allowance:
        raise CheckpointError(
            f"{path}: {what} need {declared / 1e9:.1f} GB, but the file has {size / 1e6:.1f} MB; "
            "it is not loaded"
        )


def _require_modest(payload: Any, path: Path) -> None:
    """Raise CheckpointError if tensors repeat few bytes very often, or containers never end."""
    declared = 0
    for nodes, node in enumerate(_nodes(payload, path)):
        if nodes > MAX_NODES:
            raise CheckpointError(f"{path}: holds more than {MAX_NODES:,} values; it is not loaded")
        if isinstance(node, Tensor):
            declared += node.numel() * node.element_size()
    _require_expansion(declared, path, "its tensors", IN_TENSORS)


def _nodes(payload: Any, path: Path) -> Iterator[Any]:
    """Every value inside ``payload``; what is referred to twice is counted twice."""
    stack = [(payload, 0)]
    while stack:
        node, depth = stack.pop()
        yield node
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{path}: nested more than {MAX_DEPTH} deep; it is not loaded")
        inner: Any = ()
        if isinstance(node, argparse.Namespace):
            inner = vars(node).values()
        elif isinstance(node, Mapping):
            inner = node.values()
        elif isinstance(node, list | tuple | set):
            inner = node
        stack.extend((value, depth + 1) for value in inner)
