"""The loop: accumulation, precision, sleeping modules, broken batches, full disks, selection."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itr import checkpoint
from itr.errors import CheckpointError, ConfigError, DataError, TrainingError
from itr.jobs.evaluate import evaluate
from itr.jobs.train import train
from tests.conftest import compose


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def logged(run: Path, key: str) -> list[float]:
    return [line[key] for line in lines(run) if key in line]


def test_a_seed_decides_everything(tiny: list[str], tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(compose("train", [*tiny, f"out={tmp_path / name}", f"seed={seed}"]))
    first, second, other = (logged(tmp_path / name, "train/loss") for name in "abc")
    assert first == second and first != other
    waits = logged(tmp_path / "a", "train/data_wait")  # a share of the time
    assert len(waits) == len(first) and all(0 < wait < 1 for wait in waits)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_near_full_precision(
    precision: str, tiny: list[str], tmp_path: Path
) -> None:
    calm = [*tiny, "model.dropout=0", "model.text.dropout=0", "loss=infonce", "trainer.epochs=1"]
    calm.append("trainer.growth_interval=200")
    for name in ("fp32", precision):
        train(compose("train", [*calm, f"out={tmp_path / name}", f"precision={name}"]))
    full, half = (np.array(logged(tmp_path / n, "train/loss")) for n in ("fp32", precision))
    assert np.isfinite(half).all() and not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, rtol=0.1)
    last = tmp_path / precision / "checkpoints" / "last.safetensors"
    growth = checkpoint.read_meta(last)["scaler"].get("growth_interval")
    assert growth == (200 if precision == "fp16" else None)


def test_evaluation_multiplies_in_tf32_where_asked(tiny: list[str], tmp_path: Path) -> None:
    train(compose("train", [*tiny, "trainer.max_steps=1"]))
    given = [f"checkpoint={tmp_path / 'run'}", *tiny[-3:-1], "device=cpu"]
    for precision, products in (("tf32", "high"), ("fp32", "highest")):
        evaluate(compose("eval", [*given, f"precision={precision}"]))
        assert torch.get_float32_matmul_precision() == products


def test_accumulation_averages_losses_and_updates_once(tiny: list[str], tmp_path: Path) -> None:
    # 300 captions in batches of 30: ten losses an epoch, 3 + 3 + 3 + 1 of them an update.
    results = train(compose("train", [*tiny, "accumulate=3", "trainer.epochs=2"]))
    assert results["updates"] == 8
    assert [line["step"] for line in lines(tmp_path / "run") if "train/loss" in line][-1] == 8


def test_max_steps_wins_over_epochs(tiny: list[str], tmp_path: Path) -> None:
    results = train(compose("train", [*tiny, "trainer.max_steps=7", "trainer.validate_every=3"]))
    assert results["updates"] == 7
    assert [line["step"] for line in lines(tmp_path / "run") if "val/rsum" in line] == [3, 6, 7]


def test_the_best_validation_is_marked_and_numbered_as_in_the_results(
    tiny: list[str], tmp_path: Path
) -> None:
    results = train(compose("train", [*tiny, "trainer.validate_every=5"]))
    log = (tmp_path / "run" / "train.log").read_text().splitlines()
    marked = [line for line in log if line.endswith("(best so far)")]
    where = f"epoch {results['best_epoch']}, update {results['best_updates']}, val"
    assert where in marked[-1] and f"rSum {results['val/rsum']:.1f}" in marked[-1]
    validations = [line for line in lines(tmp_path / "run") if "val/rsum" in line]
    best = max(validations, key=lambda line: line["val/rsum"])
    assert (best["epoch"], best["step"]) == (results["best_epoch"], results["best_updates"])
    highest = np.maximum.accumulate([line["val/rsum"] for line in validations])
    assert [line["val/best_rsum"] for line in validations] == highest.tolist()


def test_sleeping_parameters_do_not_move(tiny: list[str], tmp_path: Path) -> None:
    never = [*tiny, "model.graph.warmup=null", "optim.weight_decay=0.5", "trainer.epochs=1"]
    train(compose("train", [*never, "trainer.max_steps=1", f"out={tmp_path / 'short'}"]))
    train(compose("train", [*never, f"out={tmp_path / 'long'}"]))
    short, long = (
        checkpoint.read_tensors(tmp_path / name / "checkpoints" / "last.safetensors", "model/")
        for name in ("short", "long")
    )
    still = {name for name in short if torch.equal(short[name], long[name])}
    asleep = {n for n in short if n.startswith(("graph.", "relevance.", "texts.bert.pooler."))}
    assert asleep and asleep <= still
    assert "images.project.weight" not in still


def test_a_weight_of_zero_is_not_computed(tiny: list[str], tmp_path: Path) -> None:
    train(compose("train", [*tiny, "loss.weights.cross=0", "loss.weights.reg=0"]))
    keys = {key for line in lines(tmp_path / "run") for key in line}
    assert {"train/base", "train/graph"} <= keys
    assert not {"train/cross", "train/reg"} & keys


def test_selection_on_test_is_marked(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = train(compose("train", [*tiny, "select_on=test"]))
    assert results["select_on"] == "test" and "val/rsum" not in results
    printed = capsys.readouterr().out
    assert "select_on=test" in " ".join(printed.split())
    assert json.loads((tmp_path / "run" / "results.json").read_text())["select_on"] == "test"


def test_a_loss_that_is_not_finite_names_the_batch(tiny: list[str], tmp_path: Path) -> None:
    values = compose("train", [*tiny, "optim.lr=1e30", "optim.max_norm=null"])
    with pytest.raises(TrainingError, match="image ids .* and caption ids"):
        train(values)
    ids = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert len(ids["image_ids"]) == len(ids["caption_ids"]) == 30
    assert not (tmp_path / "run" / "results.json").exists()
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    if last.exists():
        assert all(t.isfinite().all() for t in checkpoint.read_tensors(last, "model/").values())


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, {"w": torch.zeros(10)}, {"n": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a real write that fails
    try:
        with pytest.raises(TrainingError, match="last.safetensors: .*could not be saved .*out=DIR"):
            checkpoint.write(path, {"w": torch.ones(1_000_000)}, {"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint.read_meta(path) == {"n": 1}
    assert torch.equal(checkpoint.read_tensors(path)["w"], torch.zeros(10))
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_too_little_space_is_found_before_training(tmp_path: Path) -> None:
    from itr.training.checkpointing import check_space

    class Huge(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.empty(2**50, device="meta"))

    with pytest.raises(TrainingError, match="GB free.*out=DIR"):
        check_space(tmp_path, Huge())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ("drop", r"missing \(1\): images\.project\.bias"),
        ("add", r"unexpected \(1\): images\.more"),
        ("reshape", r"shape \(1\): images\.project\.bias \(3,\), expected \(32,\)"),
    ],
)
def test_weights_that_do_not_fit_are_listed(
    spoil: str, named: str, tiny: list[str], tmp_path: Path
) -> None:
    train(compose("train", [*tiny, "trainer.max_steps=1"]))
    best = tmp_path / "run" / "checkpoints" / "best.safetensors"
    tensors, meta = checkpoint.read_tensors(best), checkpoint.read_meta(best)
    if spoil == "drop":
        del tensors["model/images.project.bias"]
    elif spoil == "add":
        tensors["model/images.more"] = torch.zeros(1)
    else:
        tensors["model/images.project.bias"] = torch.zeros(3)
    checkpoint.write(best, tensors, meta)
    with pytest.raises(CheckpointError, match=named):
        evaluate(compose("eval", [f"checkpoint={tmp_path / 'run'}", *tiny[-3:-1]]))


def test_features_of_another_width_are_refused(tiny: list[str], tmp_path: Path) -> None:
    train(compose("train", [*tiny, "trainer.max_steps=1"]))
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "test_ims.npy", np.ones((4, 6, 7), dtype=np.float32))
    (other / "test_caps.txt").write_text("a red square\n" * 20)
    overrides = [f"checkpoint={tmp_path / 'run'}", "data=f30k", f"data.root={other}"]
    with pytest.raises(CheckpointError, match="width 7"):
        evaluate(compose("eval", [*overrides, f"data.cache={tmp_path}", "device=cpu"]))


def test_data_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    root = tmp_path / "bad"
    root.mkdir()
    for split in ("train", "dev", "test"):
        array = np.ones((4, 12, 8), dtype=np.float32)
        array[2, 3, 4] = np.nan if split == "dev" else 1.0
        np.save(root / f"{split}_ims.npy", array)
        (root / f"{split}_caps.txt").write_text("a red square\n" * 20)
    overrides = ["data=f30k", f"data.root={root}", f"out={tmp_path / 'run'}", "tracker=none"]
    small = ["model.pretrained=false", "model.text.tokenizer=wordpiece", f"data.cache={tmp_path}"]
    with pytest.raises(DataError, match=r"dev_ims\.npy"):
        train(compose("train", [*overrides, *small]))
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_named(tiny: list[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ConfigError, match="device=cuda: no CUDA device is visible"):
        train(compose("train", [*tiny, "device=cuda"]))


@pytest.mark.parametrize(("rest", "factor"), [("mean", 1.0), ("scaled", 0.5)])
def test_the_last_update_of_an_epoch_is_the_mean_of_its_batches(
    rest: str, factor: float, tiny: list[str], tmp_path: Path
) -> None:
    """Ten batches, weights that never move: updates of 4 + 4 + 2 batches, or of 2 each."""
    still = ["optim.schedule.kind=constant", "optim.lr=0", "optim.weight_decay=0"]
    still += ["optim.max_norm=null", "model.graph.warmup=null", "trainer.log_every=1"]
    still += ["trainer.epochs=1", f"accumulate_rest={rest}"]
    norms = {}
    for size in (4, 2):
        out = tmp_path / str(size)
        train(compose("train", [*tiny, *still, f"out={out}", f"accumulate={size}"]))
        norms[size] = logged(out, "train/grad_norm")
    assert [len(norms[4]), len(norms[2])] == [3, 5]
    assert norms[4][-1] == pytest.approx(factor * norms[2][-1], rel=1e-5)
