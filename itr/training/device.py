"""Chooses the device and the arithmetic precision of a job."""

from __future__ import annotations

import torch

from itr import parallel
from itr.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device for ``name``; ``auto`` is a GPU if there is one. Raises ConfigError for a device
    that is unknown or not available."""
    if name == "auto":
        return resolve_device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: no CUDA device is visible; pass device=cpu")
    if name == "cuda" and parallel.is_launched():
        name = f"cuda:{parallel.local_rank()}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            torch.empty(0, device=device)  # raises if this machine has none
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ConfigError(
            f"device={name}: unknown, or not on this machine; expected auto, cpu or cuda"
        ) from error
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision for ``name``; ``auto`` is bf16 on a GPU that supports it, else fp32.

    Also sets how this process multiplies float32 matrices from now on: in TF32 for ``tf32``, in
    full precision for every other value.
    """
    if name == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        name = "bf16" if bf16 else "fp32"
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    return name
