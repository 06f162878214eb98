"""The embedded default, fast, and far above a linear baseline: shortened, and as `make demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import call, call_here

GIVEN = ("tracker=none", "device=cpu", "out=run")
# 186 updates instead of 628, on 800 images instead of 2000, with a smaller text tower.
SHORT = (
    "data.prepare.train=800",
    "data.prepare.val=50",
    "data.prepare.test=100",
    "trainer.epochs=3",
    "model.graph.warmup=70",
    "model.text.depth=1",
    "model.text.width=64",
    "runtime.threads=1",
)


def assert_learned(done: Any, run: Path, images: int, i2t: float, t2i: float) -> None:
    """It ended well, R@1 reaches the floors, and the graph woke in the first half."""
    assert done.returncode == 0, done.stderr + done.stdout
    results = json.loads((run / "results.json").read_text())
    assert results["test/n_images"] == images and results["test/n_captions"] == 5 * images
    assert results["test/i2t_r1"] >= i2t, results
    assert results["test/t2i_r1"] >= t2i, results
    logged = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    with_graph = [line["step"] for line in logged if "train/graph" in line]
    assert min(with_graph) <= results["updates"] / 2


def test_a_short_default_job_learns_scenes(tmp_path: Path) -> None:
    done = call_here("train.py", *GIVEN, *SHORT, cwd=tmp_path)
    # Seed 0 reaches 55 and 41, seed 1 35 and 25; the linear baseline of
    # tests/data/scenes/test_make.py reaches 16 and 12 on these images.
    assert_learned(done, tmp_path / "run", images=100, i2t=40.0, t2i=30.0)


@pytest.mark.soak
def test_the_default_job_learns_scenes(tmp_path: Path) -> None:
    done = call("train.py", *GIVEN, "runtime.threads=2", cwd=tmp_path)
    # tests/data/scenes/test_make.py holds a linear baseline below 20 both ways.
    assert_learned(done, tmp_path / "run", images=200, i2t=45.0, t2i=35.0)
