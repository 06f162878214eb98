"""What training and evaluating a run have in common: device, precision, data made on first use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from itr import parallel
from itr.data.layouts.registry import DataConfig
from itr.errors import ConfigError
from itr.evaluation.evaluator import Evaluator
from itr.instantiate import build


def resolve_device(name: str) -> torch.device:
    """``auto``: a GPU where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return resolve_device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: no CUDA device is visible; type device=cpu")
    if name == "cuda" and parallel.is_launched():
        name = f"cuda:{parallel.local_rank()}"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: unknown; expected auto, cpu or cuda") from error


def resolve_precision(name: str, device: torch.device) -> str:
    """``auto``: bf16 on a GPU that has it, else fp32. From here on this process multiplies float32
    matrices in TF32 for ``tf32``, and in full for every other."""
    if name == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        name = "bf16" if half else "fp32"
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    return name


def prepare_data(data: DataConfig) -> DataConfig:
    """Where a set is made on first use, make it; ``root`` is then where it lies."""
    if data.prepare is None:
        return data
    root = build({**data.prepare, "parent": data.root}, "data.prepare")
    return dataclasses.replace(data, root=str(root), prepare=None)


def keep_queries(
    evaluator: Evaluator,
    folder: Path,
    split: str,
    results: Mapping[str, Any],
    data: DataConfig,
    checkpoints: Sequence[Path] = (),
    told: Mapping[str, Any] | None = None,
) -> None:
    """Leave what ``evaluator`` found of each query beside the ``results`` in ``folder``.

    A gallery finds the pictures by ``data``, and the models by ``checkpoints`` (none: in
    ``folder``) and ``told``, what the user says of an authors' file.
    """
    assert evaluator.query_log is not None
    root = str(Path(data.root).expanduser().absolute())  # a gallery may be made elsewhere
    metadata = {
        "checkpoints": [str(path.expanduser().absolute()) for path in checkpoints],
        "model_options": _found_elsewhere(told or {}),
        "rerank_k": results.get(f"{split}/rerank_k"),
        "kind": evaluator.view.kind,
        "data": dataclasses.asdict(dataclasses.replace(data, root=root)),
    }
    evaluator.query_log.save(folder, split, metadata)


def _found_elsewhere(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `load_checkpoint` reads of a model's node, with folders by their absolute names."""
    text = {
        key: str(Path(value).expanduser().absolute())
        if key in ("name", "tokenizer") and value and Path(value).expanduser().exists()
        else value
        for key, value in (told.get("text") or {}).items()
    }
    return {**told, "text": text}
