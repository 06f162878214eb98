"""Every golden case of every method that exists passes at the tolerance its JSON names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import (
    albef_cases,
    alip_cases,
    hrem_cases,
    multisea_cases,
    pixel_data_cases,
    user_cases,
)
from tests.parity.harness import Case, Runner, cases_in, longest_prefix
from tests.parity.pending import NOT_BUILT

BUILT: dict[str, dict[str, Runner]] = {
    "albef": {**albef_cases.RUNNERS, **pixel_data_cases.ALBEF},
    "alip": {**alip_cases.RUNNERS, **pixel_data_cases.ALIP},
    "hrem": hrem_cases.RUNNERS,
    "multisea": {**multisea_cases.RUNNERS, **pixel_data_cases.MULTISEA},
    "user": user_cases.RUNNERS,
}


def known_prefixes(method: str) -> dict[str, Runner | None]:
    pending: dict[str, Runner | None] = dict.fromkeys(NOT_BUILT.get(method, ()))
    return {**pending, **BUILT.get(method, {})}


def test_golden_folder_holds_cases(golden_folder: Path):
    assert golden_folder.is_dir(), f"{golden_folder}: no such folder"
    assert list(cases_in(golden_folder)), f"{golden_folder}: no <method>/<case>.json in it"


def test_golden_case(golden_case: Path):
    case, method = Case(golden_case), golden_case.parent.name
    known = known_prefixes(method)
    prefix = longest_prefix(case.name, known)
    assert prefix is not None, f"{golden_case}: unknown case '{case.name}' of '{method}'"
    runner = known[prefix]
    if runner is None:
        pytest.skip("not built")
    runner(case)
    case.finish()
