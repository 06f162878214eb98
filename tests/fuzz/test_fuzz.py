"""Damaged and forged files: the right content, a word about it, or a sentence with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.outcomes import Tally

SAMPLES = 3


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_survived(name: str, tmp_path: Path) -> None:
    tally = Tally(KINDS, tmp_path)
    for number in range(SAMPLES):
        tally.try_one(name, f"{name} {number}")
    assert not tally.faults, "\n\n".join(tally.faults.values())
