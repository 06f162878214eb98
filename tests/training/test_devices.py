"""Two real processes with one batch between them, against one process with the same batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from itr import checkpoint
from itr.errors import ConfigError
from itr.training.config import check_config
from itr.training.eval_job import evaluate
from itr.training.ranks import launch
from itr.training.train_job import train
from tests.conftest import compose
from tests.training.sizes import CALM, overrides

# Five updates with everything on: HREM's graph wakes at the third. With AdamW's usual eps a
# gradient that is zero but for rounding moves its weight by the whole rate.
FIVE = ("batch_size=20", "trainer.max_steps=5", "trainer.log_every=1", "optim.eps=1e-3")
OWN = {"hrem": ("model.graph.warmup=2",), "alip": ("model.gather_grad=full",)}
ONE_LOSS = ("alip", "hrem", "user", "vse")


def values_of(model: str, world: Path, out: Path) -> dict[str, Any]:
    more = (*CALM[model], *FIVE, *OWN.get(model, ()), f"out={out / model}")
    return compose("train", overrides(model, world, *more))


def train_all(jobs: dict[str, Any]) -> dict[str, Any]:
    """One job after the other in the same processes, as in a multirun under torchrun."""
    return {name: train(values) for name, values in jobs.items()}


@pytest.fixture(scope="module")
def places(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run directories of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train_all({name: values_of(name, world, one) for name in ONE_LOSS})
    results = launch(
        train_all, {name: values_of(name, world, two) for name in ONE_LOSS}, 2, 1, cuda=False
    )
    assert set(results) == set(ONE_LOSS)
    return one, two


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("model", ONE_LOSS)
def test_two_processes_are_one(places: tuple[Path, Path], model: str) -> None:
    one, two = (place / model for place in places)
    assert len(losses(one)) == 5
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    first, second = (
        checkpoint.read_tensors(run / "checkpoints" / "last.safetensors", "model/")
        for run in (one, two)
    )
    assert set(first) == set(second)
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-5, atol=1e-5, msg=name)


def test_two_processes_leave_one_run(places: tuple[Path, Path]) -> None:
    one, two = (place / "hrem" for place in places)
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    log = (two / "train.log").read_text()
    assert "2 processes: 10 pairs each of a batch of 20, which share one loss" in log
    assert log.count("run directory") == 1


def test_a_split_evaluation_counts_nothing_twice(places: tuple[Path, Path]) -> None:
    # 20 images in batches of 8 are three batches for two processes.
    run = places[1] / "hrem"
    told = json.loads((run / "results.json").read_text())
    alone = evaluate(compose("eval", [f"checkpoint={run}", "split=test", "device=cpu"]))
    for key, value in alone.items():
        if key.startswith("test/") and isinstance(value, int | float):
            assert told[key] == pytest.approx(value), key


def test_a_batch_that_cannot_be_shared_is_refused(world: Path) -> None:
    given = overrides("hrem", world, "batch_size=20", "devices=3")
    with pytest.raises(ConfigError, match="batch_size=20: .* type batch_size=18 or 21"):
        check_config(compose("train", given))


def test_several_machines_need_a_launcher(world: Path) -> None:
    values = compose("train", overrides("hrem", world, "batch_size=20", "devices=2", "nodes=2"))
    with pytest.raises(ConfigError, match="torchrun --nnodes=2 --nproc-per-node=2"):
        train(values)
