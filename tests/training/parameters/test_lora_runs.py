"""Runs with LoRA: killed and resumed, with cached gradients, on two processes, averaged, and
evaluated; what starts from one."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import itr
from itr import checkpoint
from itr.jobs.evaluate import evaluate
from itr.jobs.export.hub_cli import main as hub
from itr.jobs.launch.workers import launch
from itr.jobs.train import train
from itr.nn.lora import LoRAConfig, is_adapter, merged
from itr.official.__main__ import export
from itr.official.load import open_file
from itr.verify_cli import main as verify
from tests.conftest import compose, signal_at_update
from tests.processes import forked_ranks, run_function
from tests.training.same_run import assert_same_run
from tests.training.sizes import NO_DROPOUT, overrides

LORA = ("model.lora.rank=2", "trainer.ema=0.5", "optim.eps=1e-3")
MODELS = ("clip", "alip")
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


def values_of(model: str, world: Path, out: Path, *more: str) -> dict[str, Any]:
    given = overrides(model, world, *NO_DROPOUT[model], *FIVE, *LORA, *more)
    return compose("train", [*given, f"out={out / model}"])


def train_all(jobs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One job after the other in the same processes, which import peft once."""
    return {values["model"]["name"]: train(values) for values in jobs}


@pytest.fixture(scope="module")
def places(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the same runs, made in several ways."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("plain", "cached", "ranks")}
    more = {"plain": (), "cached": ("grad_cache=8",), "ranks": ()}
    jobs = {
        name: [values_of(model, world, out, *more[name]) for model in MODELS]
        for name, out in made.items()
    }
    train_all(jobs["plain"]), train_all(jobs["cached"])
    launch(train_all, jobs["ranks"], 2, 1, cuda=False)
    return made


@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_the_same_however_it_is_computed(model: str, places: dict[str, Path]) -> None:
    plain = last_of(places["plain"] / model)
    moments = [name for name in plain if name.startswith("optim/tower.")]
    assert all(is_adapter(name) or "logit_scale" in name for name in moments)
    for other in ("cached", "ranks"):
        found = last_of(places[other] / model)
        for name, weight in plain.items():
            if name.startswith(("model/", "ema/")):
                torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5, msg=name)


def test_a_killed_run_resumes_exactly(places: dict[str, Path], world: Path, tmp_path: Path) -> None:
    """With the weights that attention packs, which get their adapters in each forward pass."""
    process = run_function(killed_at_update_4, values_of("alip", world, tmp_path))
    assert process.returncode == -signal.SIGKILL, process.stderr
    train(values_of("alip", world, tmp_path, "resume=auto"))
    assert_same_run(places["plain"] / "alip", tmp_path / "alip")


def test_a_run_tells_what_it_trains_and_is_evaluated(places: dict[str, Path]) -> None:
    run = places["plain"] / "clip"
    results = json.loads((run / "results.json").read_text())
    assert results["trained_parameters_millions"] < results["parameters_millions"] / 2
    log = (run / "train.log").read_text()
    assert "adapters of rank 2" in log and "parameters are trained" in log
    assert verify([str(run)]) == 0
    found = evaluate(compose("eval", [f"checkpoint={run}", "device=cpu"]))
    assert found["test/rsum"] == results["test/rsum"]


def test_a_run_is_exported_with_merged_adapters(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = places["plain"] / "clip", tmp_path / "out"
    hub([str(run), "--out", str(out)])
    assert "rank 2 are merged" in capsys.readouterr().out
    caption = "a red circle left of a blue square"
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModel.from_pretrained(out)
    with torch.no_grad():
        found = model.get_text_features(**tokenizer([caption], return_tensors="pt")).pooler_output
    ours = torch.as_tensor(itr.load(run, device="cpu").encode_texts([caption]))
    torch.testing.assert_close(nn.functional.normalize(found), ours, rtol=0, atol=1e-6)
    assert hub([str(run), "--out", str(tmp_path / "adapters"), "--adapters"]) == 2
    assert "pretrained=false" in capsys.readouterr().err

    best = places["plain"] / "alip" / "checkpoints" / "best.safetensors"
    assert export(best, tmp_path / "alip.pt") == 2
    imported = open_file(tmp_path / "alip.pt", None, None, None)[1].state
    expected = merged(checkpoint.read_tensors(best, "model/"), LoRAConfig(rank=2))
    assert imported and all(torch.equal(value, expected[k]) for k, value in imported.items())


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
