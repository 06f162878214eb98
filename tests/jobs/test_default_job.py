"""The embedded default, as `make demo` runs it: fast, and far above a linear baseline."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import call


def test_the_default_job_learns_scenes(tmp_path: Path) -> None:
    given = ["tracker=none", "device=cpu", "runtime.threads=2", "out=run"]
    done = call("train.py", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test/n_images"] == 200 and results["test/n_captions"] == 1000
    # tests/data/test_scenes.py holds a linear baseline below 20 both ways.
    assert results["test/i2t_r1"] >= 45.0, results
    assert results["test/t2i_r1"] >= 35.0, results
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    with_graph = [line["step"] for line in logged if "train/graph" in line]
    assert min(with_graph) <= results["updates"] / 2
