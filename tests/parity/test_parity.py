"""Every golden case of every implemented method passes at the tolerance its JSON names.

The cases of method ``<name>`` are run by ``tests/parity/<name>_cases.py``. Its ``RUNNERS`` maps
prefixes of case names to functions; its optional ``NOT_BUILT`` lists the prefixes of cases whose
task is not implemented yet, which are skipped.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.parity.harness import Case, Runner, cases_in, longest_prefix


def runners_of(method: str) -> dict[str, Runner | None]:
    """Prefix -> runner (None: not implemented yet) of a method; empty for an unknown one."""
    if not Path(__file__).with_name(f"{method}_cases.py").is_file():
        return {}
    module = importlib.import_module(f"tests.parity.{method}_cases")
    pending: dict[str, Runner | None] = dict.fromkeys(getattr(module, "NOT_BUILT", ()))
    return {**pending, **module.RUNNERS}


def test_golden_folder_holds_cases(golden_folder: Path):
    assert golden_folder.is_dir(), f"{golden_folder}: no such folder"
    assert list(cases_in(golden_folder)), f"{golden_folder}: no <method>/<case>.json in it"


def test_golden_case(golden_case: Path):
    case, method = Case(golden_case), golden_case.parent.name
    runners = runners_of(method)
    prefix = longest_prefix(case.name, runners)
    assert prefix is not None, f"{golden_case}: unknown case '{case.name}' of '{method}'"
    runner = runners[prefix]
    if runner is None:
        pytest.skip("not built")
    runner(case)
    case.finish()
