"""Faults around a run: signals, partially written files, exhausted memory, lost ranks."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from itr import checkpoint
from itr.clock import Clock
from itr.errors import DataError, RankLost, Stopped, TrainingError
from itr.jobs import run_dir
from itr.jobs.launch import workers
from itr.jobs.train import train
from itr.results.results_file import RESULTS
from itr.results.trackers.tracker import MetricsFile
from itr.training import checkpointing
from itr.training.config import check_config
from itr.training.console import log
from itr.training.faults.explain import explain_errors
from itr.training.faults.heartbeat import Heartbeat
from itr.training.faults.nonfinite import append_batch_ids
from itr.training.signals import StopRequest
from tests.conftest import compose
from tests.training.same_run import assert_same_run
from tests.training.sizes import overrides


@contextlib.contextmanager
def signal_after_log(key: str, update: int) -> Iterator[None]:
    """Sends SIGTERM to this process once ``key`` of ``update`` was logged."""
    log_line = MetricsFile.log

    def log(file: MetricsFile, values: Mapping[str, float], step: int) -> None:
        log_line(file, values, step)
        if key in values and step == update:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsFile, "log", log)
        yield


def test_an_interrupted_validation_is_repeated(tiny: list[str], tmp_path: Path) -> None:
    slow = ["runtime.eval_batch_size=1", "trainer.max_steps=8", "trainer.validate_every=5"]
    given = [*tiny, *slow, "trainer.log_every=100"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(compose("train", [*given, f"out={whole}"]))
    last = cut / "checkpoints" / checkpointing.LAST
    often = [*given, f"out={cut}", "trainer.checkpoint_minutes=1e-9"]  # after every update
    # Update 5 is logged right before the first validation.
    with signal_after_log("train/loss", 5), pytest.raises(Stopped, match="after update 5"):
        train(compose("train", often))
    before = last.with_name(checkpointing.PREVIOUS)
    found = [checkpoint.read_meta(path) for path in (last, before)]
    assert [meta["unvalidated"] for meta in found] == [True, False]
    assert [meta["clock"]["updates"] for meta in found] == [5, 4]
    # The last update's validation is the second one; behind it, the test split is evaluated.
    with signal_after_log("val/rsum", 8), pytest.raises(Stopped) as stopped:
        train(compose("train", [*often, "resume=auto"]))
    assert stopped.value.preempted and not (cut / RESULTS).exists()
    results = train(compose("train", [*often, "resume=auto"]))
    assert results["resumed_at"] == 8
    assert_same_run(whole, cut)


def test_a_signal_before_training_ends_the_run_immediately() -> None:
    with StopRequest(), pytest.raises(Stopped, match="before the first update") as stopped:
        signal.raise_signal(signal.SIGUSR1)
    assert stopped.value.preempted
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with StopRequest() as stop:
        stop.wait()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped) as stopped:
            stop.check()
        assert not stopped.value.preempted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_fp16_overflow_lowers_the_scale_and_skips_no_batch(
    tiny: list[str], tmp_path: Path
) -> None:
    large = [*tiny, "precision=fp16", "loss.weights.base=1e4", "trainer.skip_nonfinite=1"]
    results = train(compose("train", [*large, "trainer.max_steps=12"]))
    assert results["updates"] == 12
    assert not (tmp_path / "run" / "not_finite.json").exists()
    meta = checkpoint.read_meta(tmp_path / "run" / "checkpoints" / checkpointing.LAST)
    assert meta["scaler"]["scale"] < 2.0**16 and meta["skipped"] == 0


def test_a_run_resumes_on_another_kind_of_device(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [*tiny, "trainer.max_steps=4"]
    train(compose("train", short))
    run = tmp_path / "run"
    last = run / "checkpoints" / checkpointing.LAST
    tensors, meta = checkpoint.read_tensors(last), checkpoint.read_meta(last)
    tensors["rng/draws"] = torch.zeros(16, dtype=torch.uint8)  # as long as a CUDA generator's
    checkpoint.write(last, tensors, {**meta, "device": "cuda"})
    (run / RESULTS).unlink()
    left = [run / ".results.json.1.tmp", last.with_name(".last.safetensors.1.tmp")]
    for path in left:
        path.write_bytes(b"half of it")
    results = train(compose("train", [*short, "resume=auto"]))
    assert results["resumed_at"] == 4
    assert "device=cuda" in " ".join(capsys.readouterr().out.split())
    assert not any(path.exists() for path in left)


def test_the_space_of_checkpoints_that_are_there_counts(tmp_path: Path) -> None:
    free = checkpointing.shutil.disk_usage(tmp_path).free
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.empty(free // 20, device="meta"))  # best: a fifth, last: 3/5
    with pytest.raises(TrainingError, match="GB free.*out=DIR"):
        checkpointing.check_space(tmp_path, model)  # type: ignore[arg-type]
    (tmp_path / "checkpoints").mkdir()
    for name, fifths in (
        (checkpointing.BEST, 1),
        (checkpointing.LAST, 3),
        (checkpointing.PREVIOUS, 3),
    ):
        with open(tmp_path / "checkpoints" / name, "wb") as file:
            file.truncate(free // 5 * fifths)  # takes no space itself
    checkpointing.check_space(tmp_path, model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "evaluating", "told", "missing"),
    [
        (
            "hrem",
            False,
            r"update 7: .*batch_size=10 .*activation_checkpointing.*bf16",
            "grad_cache",
        ),
        ("albef", False, r"update 7: .*grad_cache=2", "eval_batch_size"),
        ("vse", True, r"evaluation after update 7: .*eval_batch_size=2;", "grad_cache|rerank"),
        ("albef", True, r"eval_batch_size=2 rerank.batch_size=128", "grad_cache"),
    ],
)
def test_out_of_memory_errors_suggest_what_the_model_supports(
    model: str, evaluating: bool, told: str, missing: str, world: Path, tmp_path: Path
) -> None:
    config = check_config(
        compose("train", overrides(model, world, "batch_size=20", "precision=fp32"))
    )
    with (
        pytest.raises(TrainingError, match=told) as caught,
        explain_errors(Clock(updates=7), config, Heartbeat(tmp_path), evaluating),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert not any(word in str(caught.value) for word in missing.split("|"))


def test_the_original_error_of_a_rank_is_raised(tmp_path: Path) -> None:
    lost = RankLost("rank 0, after update 3: the other ranks do not answer")
    for rank, error in enumerate((lost, DataError("a.jpg: cannot be read"))):
        (tmp_path / f"error-{rank}").write_bytes(pickle.dumps(error))
    failures = {0: ProcessFailure(local_rank=0, pid=1, exitcode=workers.FAILED, error_file="")}
    error = ChildFailedError("train", failures)
    for number in (0, signal.SIGTERM, signal.SIGINT):
        assert "a.jpg" in str(workers.root_cause(error, tmp_path, number))
    (tmp_path / "error-1").unlink()
    assert "rank 0, after update 3" in str(workers.root_cause(error, tmp_path, 0))
    assert isinstance(workers.root_cause(error, tmp_path, signal.SIGTERM), Stopped)


def test_a_disk_that_cannot_be_written_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="run.*out=DIR"):
        run_dir.write_config(tmp_path / "file" / "run", {"seed": 0})
    monkeypatch.setattr(log, "propagate", True)  # an earlier run's log may have kept it
    append_batch_ids(tmp_path / "file" / "ids.json", 3, {"image_ids": [1], "caption_ids": [2]})
    assert str(tmp_path / "file" / "ids.json") in caplog.text
