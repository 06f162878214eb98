"""A run killed with SIGKILL inside an epoch and resumed gives the values of an undisturbed run."""

from __future__ import annotations

import runpy
import signal
import sys
from pathlib import Path

from tests.conftest import TINY, call, call_here, signal_at_update
from tests.processes import run_function
from tests.training.same_run import assert_same_run

# Ten batches an epoch; a checkpoint every four updates lies inside an epoch, the graph wakes at 13.
LONG = ("trainer.epochs=5", "trainer.checkpoint_every=4", "model.graph.warmup=13")


def killed_at_update_20(arguments: list[str]) -> None:
    sys.argv = ["train.py", *arguments]
    with signal_at_update(20, signal.SIGKILL):
        runpy.run_path("train.py", run_name="__main__")


def test_a_killed_run_resumes_exactly(world: Path, tmp_path: Path) -> None:
    common = [*TINY, *LONG, f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    done = call("train.py", *common, f"out={undisturbed}")
    assert done.returncode == 0, done.stderr + done.stdout

    # Past the checkpoint of update 16, inside the second epoch, after update 18 was logged.
    process = run_function(killed_at_update_20, [*common, f"out={killed}"])
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert '"step": 18' in (killed / "metrics.jsonl").read_text()
    assert not (killed / "results.json").exists()

    refused = call_here("train.py", *common, f"out={killed}")
    assert refused.returncode == 2
    assert "resume=auto" in refused.stderr and "out=DIR" in refused.stderr
    assert "overwrite" not in refused.stderr  # it would delete what can be saved

    resumed = call("train.py", *common, f"out={killed}", "resume=auto")
    assert resumed.returncode == 0, resumed.stderr + resumed.stdout
    assert "resuming at update" in resumed.stdout
    assert_same_run(undisturbed, killed)
