"""Runs with LoRA: killed and resumed, with cached gradients, on two processes, averaged, and
evaluated; what starts from one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from itr import checkpoint
from itr.jobs.evaluate import evaluate
from itr.jobs.launch.workers import launch
from itr.jobs.train import train
from itr.nn.lora import LoRAConfig, is_adapter, merged
from itr.verify_cli import main as verify
from tests.conftest import compose, signal_at_update
from tests.processes import forked_ranks, run_function
from tests.training.same_run import assert_same_run
from tests.training.sizes import NO_DROPOUT, overrides

LORA = ("model.lora.rank=2", "trainer.ema=0.5", "optim.eps=1e-3")
FIVE = ("batch_size=20", "trainer.max_steps=5", "trainer.log_every=1", "trainer.checkpoint_every=2")


@pytest.fixture(scope="module", autouse=True)
def quick_ranks() -> Iterator[None]:
    with forked_ranks():
        yield


def killed_at_update_4(values: dict[str, Any]) -> None:
    with signal_at_update(4, signal.SIGKILL):
        train(values)


def last_of(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(run / "checkpoints" / "last.safetensors")


@pytest.mark.parametrize("model", ["clip", "alip"])
def test_a_run_is_the_same_however_it_is_computed(
    model: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = overrides(model, world, *NO_DROPOUT[model], *FIVE, *LORA)
    runs = {name: tmp_path / name for name in ("plain", "killed", "cached", "ranks")}

    def values(name: str, *more: str) -> dict[str, Any]:
        return compose("train", [*given, *more, f"out={runs[name]}"])

    results = train(values("plain"))
    assert results["trained_parameters_millions"] < results["parameters_millions"] / 2
    log = (runs["plain"] / "train.log").read_text()
    assert "adapters of rank 2" in log and "parameters are trained" in log
    process = run_function(killed_at_update_4, values("killed"))
    assert process.returncode == -signal.SIGKILL, process.stderr
    train(values("killed", "resume=auto"))
    assert_same_run(runs["plain"], runs["killed"])

    train(values("cached", "grad_cache=8"))
    launch(train, values("ranks"), 2, 1, cuda=False)
    plain = last_of(runs["plain"])
    assert any(name.startswith("optim/") for name in plain)
    assert all(is_adapter(n) for n in plain if "optim/tower" in n and n.count(".") > 1)
    for other in ("cached", "ranks"):
        found = last_of(runs[other])
        for name, weight in plain.items():
            if name.startswith(("model/", "ema/")):
                torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5, msg=name)

    assert verify([str(runs["plain"])]) == 0
    found = evaluate(compose("eval", [f"checkpoint={runs['plain']}", "device=cpu"]))
    assert found["test/rsum"] == results["test/rsum"]


def test_a_run_starts_from_weights_with_merged_adapters(world: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    one = ("batch_size=20", "trainer.max_steps=1", "optim.lr=0.01")
    train(compose("train", overrides("clip", world, *one, *LORA[:1], f"out={first}")))
    more = [f"model.init={first}", "optim.lr=0", f"out={second}"]
    train(compose("train", overrides("clip", world, *one[:2], *more)))
    assert "are merged into its weights" in (second / "train.log").read_text()
    best = (run / "checkpoints" / "best.safetensors" for run in (first, second))
    adapted, plain = (checkpoint.read_tensors(path, "model/") for path in best)
    expected = merged(adapted, LoRAConfig(rank=2))
    assert set(expected) == set(plain)
    for name, weight in expected.items():
        assert torch.equal(plain[name], weight), name
