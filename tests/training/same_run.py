"""Whether two runs computed the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# Endings of keys.
MEASURED = ("time", "pairs_per_second", "seconds", "data_wait", "tflops_per_device", "mfu")


def logged_values(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without measured times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(MEASURED)} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    """The same values and, bit for bit, the same weights, moments and generators."""
    assert logged_values(first) == logged_values(second)
    a, b = (load_file(run / "checkpoints" / "last.safetensors") for run in (first, second))
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
