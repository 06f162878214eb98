"""A run that is stopped anywhere and resumed gives the values of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from itr import checkpoint
from itr.errors import CheckpointError, ConfigError, Stopped, TrainingError
from itr.jobs.lock import RunLock
from itr.jobs.train import train
from tests.conftest import compose, signal_at_update
from tests.training.same_run import assert_same_run
from tests.training.sizes import SIZES, overrides

# Three batches per epoch; the stop lies between two log lines.
LENGTH = (
    "batch_size=20",
    "trainer.max_steps=10",
    "trainer.log_every=4",
    "trainer.validate_every=8",
    "accumulate=1",
)
STOP = 6
LONGER = {"hrem": ("model.graph.warmup=6",), "multisea": ("accumulate=2",)}


@pytest.mark.parametrize("model", sorted(SIZES))
def test_a_stopped_run_resumes_exactly(model: str, world: Path, tmp_path: Path) -> None:
    options = overrides(model, world, *LENGTH, *LONGER.get(model, ()))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(compose("train", [*options, f"out={whole}"]))
    number = signal.SIGUSR1 if model == "user" else signal.SIGTERM
    with signal_at_update(STOP, number), pytest.raises(Stopped, match="resume=auto") as stopped:
        train(compose("train", [*options, f"out={cut}"]))
    assert stopped.value.preempted and not (cut / "results.json").exists()
    assert signal.getsignal(number) == signal.SIG_DFL
    before = checkpoint.read_meta(cut / "checkpoints" / "last.safetensors")["train_seconds"]
    results = train(compose("train", [*options, f"out={cut}", "resume=auto"]))
    assert results["resumed_at"] == STOP
    assert results["train_seconds"] >= round(before, 1) > 0  # both parts of the run
    assert_same_run(whole, cut)


def test_a_truncated_checkpoint_is_replaced_by_the_previous_one(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [*tiny, "trainer.checkpoint_every=3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(compose("train", [*long, f"out={whole}"]))
    train(compose("train", [*long, f"out={cut}"]))
    (cut / "results.json").unlink()
    last = cut / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-1000])
    results = train(compose("train", [*long, f"out={cut}", "resume=auto"]))
    said = " ".join(capsys.readouterr().out.split())
    assert "truncated" in said and "previous checkpoint" in said
    assert results["resumed_at"] == 18
    assert_same_run(whole, cut)
    (cut / "results.json").unlink()
    for path in (cut / "checkpoints").glob("[lp]*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="neither is the previous one.*model.init="):
        train(compose("train", [*long, f"out={cut}", "resume=auto"]))


def test_two_jobs_do_not_share_a_run_directory(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        RunLock(run),
        pytest.raises(ConfigError, match=f"process {os.getpid()}"),
    ):
        train(compose("train", tiny))
    train(compose("train", [*tiny, "trainer.max_steps=1"]))  # the lock of a job that is gone
    with RunLock(run), pytest.raises(ConfigError, match="out=DIR"):
        train(compose("train", [*tiny, "overwrite=true"]))
    assert (run / "results.json").is_file()


def test_batches_that_are_not_finite_can_be_skipped(
    tiny: list[str], world: Path, tmp_path: Path
) -> None:
    (made,) = (world / "data").glob("*/scenes_precomp")
    shutil.copytree(made, tmp_path / "data")
    regions = np.load(tmp_path / "data" / "train_ims.npy")
    regions[7] = 3e38  # finite, but not for long
    np.save(tmp_path / "data" / "train_ims.npy", regions)
    own = [o for o in tiny if not o.startswith(("data.", "trainer.epochs"))]
    own += ["data=f30k", f"data.root={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}"]
    own += ["model.pretrained=false", "model.text.tokenizer=wordpiece", "trainer.epochs=1"]
    results = train(compose("train", [*own, "trainer.skip_nonfinite=10"]))
    assert results["updates"] == 10
    told = (tmp_path / "run" / "not_finite.json").read_text().splitlines()
    assert 1 < len(told) < 10
    every = [set(json.loads(line)["image_ids"]) for line in told]
    assert len(every[0]) > 5 and set.intersection(*every)
    state = checkpoint.read_tensors(tmp_path / "run" / "checkpoints" / "last.safetensors", "model/")
    assert all(t.isfinite().all() for t in state.values())
    with pytest.raises(TrainingError, match="not finite"):
        train(compose("train", [*own, "trainer.skip_nonfinite=1", f"out={tmp_path / 'other'}"]))
