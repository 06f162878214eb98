"""Damage with random seeds for ``ITR_SOAK_MINUTES`` (60); prints the counts by kind of file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.outcomes import Tally

pytestmark = pytest.mark.soak
MINUTES = float(os.environ.get("ITR_SOAK_MINUTES", "60"))
SEED = os.environ.get("ITR_SOAK_SEED", str(time.time_ns()))


def test_random_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(KINDS, tmp_path)
    end, number = time.monotonic() + 60 * MINUTES, 0
    while time.monotonic() < end or not number:
        for name in KINDS:
            tally.try_one(name, f"{SEED} {number} {name}")
        number += 1
    with capsys.disabled():
        print(f"\nITR_SOAK_SEED={SEED}\n{tally.table()}")
    assert not tally.faults, "\n\n".join(tally.faults.values())
