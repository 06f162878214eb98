"""The moving average of the weights: its arithmetic, what is evaluated and saved, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from itr.errors import ConfigError, Stopped
from itr.jobs.evaluate import evaluate
from itr.jobs.train import train
from itr.training.parameters.weight_average import WeightAverage
from tests.conftest import compose, signal_at_update
from tests.training.same_run import assert_same_run

EMA = ("trainer.ema=0.8", "trainer.checkpoint_every=1", "trainer.validate_every=2")


def test_the_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, 0.3)
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for update in range(1, 5):
        for name, weight in model.named_parameters():
            weight.data.add_(torch.randn_like(weight))
            decay = min(0.3, (1 + update) / (10 + update))
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach()
        average.update(update)
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with average.in_place():
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight, expected[name])
    for name, weight in model.named_parameters():
        assert torch.equal(weight, own[name])
        torch.testing.assert_close(average.tensors()[name], expected[name])


def test_the_average_is_selected_and_tested_and_training_is_as_without(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    train(compose("train", [*tiny, *EMA[1:], f"out={plain}"]))
    results = train(compose("train", [*tiny, *EMA, f"out={averaged}"]))
    assert "trainer.ema=0.8" in capsys.readouterr().out
    last, other = (load_file(run / "checkpoints/last.safetensors") for run in (averaged, plain))
    assert all(torch.equal(last[name], tensor) for name, tensor in other.items())
    best = load_file(averaged / "checkpoints" / "best.safetensors")
    saved = {name.removeprefix("ema/"): value for name, value in last.items() if "ema/" in name}
    assert saved and set(last) - set(other) == {f"ema/{name}" for name in saved}
    selected = json.loads((averaged / "results.json").read_text())
    if selected["best_updates"] == results["updates"]:
        assert all(torch.equal(best[f"model/{name}"], value) for name, value in saved.items())
    assert not all(torch.equal(best[name], last[name]) for name in best)
    alone = evaluate(compose("eval", [f"checkpoint={averaged}", "split=test", "device=cpu"]))
    assert alone["test/rsum"] == pytest.approx(results["test/rsum"])


def test_a_stopped_run_resumes_exactly(tiny: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(compose("train", [*tiny, *EMA, f"out={whole}"]))
    with signal_at_update(3), pytest.raises(Stopped):
        train(compose("train", [*tiny, *EMA, f"out={cut}"]))
    train(compose("train", [*tiny, *EMA, f"out={cut}", "resume=auto"]))
    assert_same_run(whole, cut)


def test_a_decay_outside_of_0_and_1_is_refused(tiny: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.ema"):
        train(compose("train", [*tiny, "trainer.ema=1"]))
