"""Reads the weights of a TorchScript archive (OpenAI's CLIP files) without executing its code.

Such an archive is a zip. ``data.pkl`` describes a tree of modules whose classes are defined by the
code in it; here they are replaced by placeholders, and only tensors are read.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr.errors import CheckpointError
from itr.weights_file import require_modest_zip

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Placeholder:
    """Stands for any module of the archive and holds its attributes."""

    content: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.content = state


class _Unpickler(pickle.Unpickler):
    """Allows tensors, containers and placeholders, and rejects all other classes."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Placeholder
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle":  # typed lists and dictionaries
            return lambda value, *_: value
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"holds a {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        content = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
        return torch.frombuffer(content, dtype=dtype, count=count)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if math.prod(size) > storage.numel():  # a stride of 0 repeats one number
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} from {storage.numel()} numbers")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def is_jit_archive(path: Path) -> bool:
    """Whether ``path`` is a zip file that contains TorchScript code."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # the reader of weights says what is wrong


def read_jit_archive(path: Path) -> dict[str, Tensor]:
    """All tensors of the archive by dotted name.

    Raises CheckpointError if it is damaged or holds anything but modules and tensors.
    """
    try:
        require_modest_zip(path)
        with zipfile.ZipFile(path) as archive:
            folder = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            root = _Unpickler(archive, folder.removesuffix("/data.pkl")).load()
    except Exception as error:  # damaged pickles raise many types
        raise CheckpointError(
            f"{path}: cannot be read as a TorchScript archive of weights ({error!r}); it is "
            "truncated, or holds more than modules and tensors"
        ) from error
    return dict(_tensors(root, ""))


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Placeholder):
        for key, inner in value.content.items():
            yield from _tensors(inner, f"{name}.{key}" if name else key)
