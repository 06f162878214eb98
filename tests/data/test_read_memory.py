"""Large region arrays are memory-mapped and never copied."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import PATIENCE, ROOT
from tests.data import memory_reader
from tests.data.memory_reader import write_large


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_reading_keeps_no_copy_of_the_array(tmp_path):
    size = write_large(tmp_path, 1200)
    process = subprocess.run(
        [sys.executable, memory_reader.__file__, str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    before, peak = map(float, process.stdout.split())
    assert size > 330 and peak - before < 0.5 * size, (before, peak)
