"""Every method with a literal version, found by its module in ``benchmarks/literal``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from benchmarks import literal
from benchmarks.cases import Case

_MODULES = [
    importlib.import_module(f"{literal.__name__}.{module.name}")
    for module in pkgutil.iter_modules(literal.__path__)
]
CASES: dict[str, Case] = {
    module.CASE.name: module.CASE for module in _MODULES if hasattr(module, "CASE")
}
LITERAL: dict[str, Callable[..., Any]] = {
    module.CASE.name: module.Literal for module in _MODULES if hasattr(module, "CASE")
}
