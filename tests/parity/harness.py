"""Golden cases: loading, discovery, and comparison of numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

Runner = Callable[["Case"], None]
PROOFS = ("out.", "grad", "post")  # expected tensors, which a runner must compare


class Case:
    """One golden case: its JSON, its tensors, and a record of the comparisons."""

    def __init__(self, path: Path):
        self.path, self.data = path, json.loads(path.read_text(encoding="utf-8"))
        tensors = path.with_suffix(".safetensors")
        self.tensors: dict[str, Tensor] = load_file(tensors) if tensors.is_file() else {}
        self.name: str = self.data["case"]
        self.open = {key for key in self.tensors if key.startswith(PROOFS)}
        self.faults: list[str] = []

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, by the rest of their names."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def tolerance(self, key: str = "") -> tuple[float, float]:
        """(atol, rtol) from the JSON; by default, floats to rtol 1e-5.

        If tolerances are given by group, the group that a component of ``key`` starts with applies.
        """
        named = self.data.get("tolerance", self.data.get("recommended_tolerance", {}))
        if not isinstance(named, Mapping):  # free text
            return 0.0, 1e-5
        groups = [group for group, value in named.items() if isinstance(value, Mapping)]
        matching = [g for part in key.split(".") for g in groups if part.startswith(g)]
        named = named[matching[0]] if matching else named
        if named.get("exact"):
            return 0.0, 0.0
        if "atol" not in named and "rtol" not in named:
            return 0.0, 1e-5
        atol = named.get("atol_per_tensor", {}).get(key, named.get("atol", 0.0))
        return float(atol), float(named.get("rtol", 0.0))

    def check(self, key: str, actual: Any, atol: float | None = None) -> None:
        """Compare ``actual`` with the tensor ``key``; ``atol`` if a note of the case gives one."""
        self.open.discard(key)
        self.equal(key, actual, self.tensors[key], atol)

    def equal(self, what: str, actual: Any, expected: Any, atol: float | None = None) -> None:
        """Compare array-likes: integers must be equal, floats within the tolerance."""
        actual, expected = _array(actual), _array(expected)
        case_atol, rtol = self.tolerance(what)
        atol = case_atol if atol is None else max(atol, case_atol)
        if actual.shape != expected.shape:
            self.faults.append(f"{what}: shape {actual.shape}, expected {expected.shape}")
            return
        if expected.dtype.kind != "f":
            if not np.array_equal(actual, expected):
                self.faults.append(f"{what}: {int((actual != expected).sum())} entries differ")
            return
        a, b = actual.astype(np.float64), expected.astype(np.float64)
        same = np.isclose(a, b, atol=atol, rtol=rtol, equal_nan=True)
        if not same.all():
            worst = float(np.nanmax(np.abs(np.where(same, 0.0, a - b))))
            self.faults.append(f"{what}: {int((~same).sum())} of {same.size} differ, by {worst:g}")

    def holds(self, what: str, truth: bool) -> None:
        """Check a property that is not a comparison of tensors."""
        if not truth:
            self.faults.append(what)

    def account_for(self, *keys: str) -> None:
        """Mark tensors that were compared in another way."""
        self.open.difference_update(keys)

    def finish(self) -> None:
        """Fail with all mismatches and all expected tensors that were never compared."""
        if self.open:
            self.faults.append(f"never compared: {', '.join(sorted(self.open))}")
        assert not self.faults, f"{self.path}:\n  " + "\n  ".join(self.faults)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def cases_in(folder: Path) -> Iterator[Path]:
    """Every JSON with a ``case`` key in ``folder``/<method>/; other files are data of cases."""
    for path in sorted(folder.glob("*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "case" in content:
            yield path


def longest_prefix(name: str, known: Mapping[str, Runner | None]) -> str | None:
    """The longest key of ``known`` that ``name`` starts with."""
    return max((p for p in known if name.startswith(p)), key=len, default=None)
