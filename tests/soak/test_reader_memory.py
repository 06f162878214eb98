"""HREM on region arrays larger than memory: arrays are memory-mapped and never copied."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.data.memory_reader import anonymous, write_large

MODEL = (
    "model.embed_size=256", "model.text.width=64", "model.text.mlp_width=64",
    "model.text.depth=1", "model.text.heads=2", "model.graph.warmup=2",
)  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.soak
def test_hrem_trains_from_five_gigabytes_in_under_two(tmp_path):
    """The whole of `train.py`, its validation and test, on a 5 GB array."""
    assert write_large(tmp_path / "set", 17_500) > 4900
    for split in ("dev", "test"):
        write_large(tmp_path / "set", 50, split)
    arguments = [
        "model=hrem", "data=f30k", f"data.root={tmp_path / 'set'}", "recipe=hrem_scenes_retrieval",
        "data.protocols=[full]", f"data.cache={tmp_path / 'cache'}", "batch_size=64",
        "trainer.max_steps=40", "trainer.validate_every=40", "runtime.num_workers=2",
        "tracker=none", "device=cpu", f"out={tmp_path / 'run'}", *MODEL,
    ]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        peak = 0.0
        while run.poll() is None:
            if Path(f"/proc/{run.pid}/status").exists():
                try:
                    peak = max(peak, anonymous(str(run.pid)))
                except (OSError, ValueError):
                    break  # it has just ended
            time.sleep(0.05)
        run.wait()
    assert run.returncode == 0, log.read_text()
    print(f"peak RssAnon {peak:.0f} MB")
    assert 100 < peak < 2000
