"""Two real processes with one batch between them, against one process with the same batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itr import checkpoint
from itr.errors import ConfigError
from itr.evaluation.query_log import read_queries
from itr.jobs.evaluate import evaluate
from itr.jobs.launch.workers import launch
from itr.jobs.train import train
from itr.training.config import check_config
from tests.conftest import compose
from tests.processes import forked_ranks
from tests.training.sizes import NO_DROPOUT, overrides

# Five updates with everything on: HREM's graph wakes at the third. With AdamW's usual eps a
# gradient that is zero but for rounding moves its weight by the whole rate.
FIVE = ("batch_size=20", "trainer.max_steps=5", "trainer.log_every=1", "optim.eps=1e-3")
OWN = {"hrem": ("model.graph.warmup=2",), "alip": ("model.gather_grad=full",)}
ONE_LOSS = ("alip", "clip", "hrem", "user", "vse")


@pytest.fixture(scope="module", autouse=True)
def quick_ranks() -> Iterator[None]:
    with forked_ranks():
        yield


def values_of(model: str, world: Path, out: Path) -> dict[str, Any]:
    more = (*NO_DROPOUT[model], *FIVE, *OWN.get(model, ()), f"out={out / model}")
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
    assert "2 processes with 10 pairs each (batch_size=20), one loss" in log
    assert log.count("run directory") == 1


def test_a_split_evaluation_counts_nothing_twice(places: tuple[Path, Path]) -> None:
    # 20 images in batches of 8 are three batches for two processes.
    run = places[1] / "hrem"
    told = json.loads((run / "results.json").read_text())
    alone = evaluate(compose("eval", [f"checkpoint={run}", "split=test", "device=cpu"]))
    for key, value in alone.items():
        if key.startswith("test/") and isinstance(value, int | float):
            assert told[key] == pytest.approx(value), key


@pytest.fixture(scope="module")
def matcher(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model with a second stage."""
    out = tmp_path_factory.mktemp("matcher") / "run"
    more = ("batch_size=20", "trainer.max_steps=1", f"out={out}")
    train(compose("train", overrides("albef", world, *more)))
    return out


def test_two_processes_share_eval_and_its_second_stage(matcher: Path, tmp_path: Path) -> None:
    told = json.loads((matcher / "results.json").read_text())
    chosen = [f"checkpoint={matcher}", "device=cpu", "devices=2", "runtime.eval_batch_size=8"]
    kept = [f"out={tmp_path / 'out'}", f"embeddings={tmp_path / 'kept.safetensors'}"]
    found = evaluate(compose("eval", [*chosen, *kept]))
    assert found["test/rerank_k"] == 12 and "test/first_stage/rsum" in found
    numbers = {k: v for k, v in found.items() if k.startswith("test/") and k in told}
    assert len(numbers) > 15
    for key, value in numbers.items():
        expected = pytest.approx(told[key]) if isinstance(value, float) else told[key]
        assert value == expected, key
    one, two = read_queries(matcher), read_queries(tmp_path / "out")
    for way in ("i2t", "t2i"):
        assert np.array_equal(
            one.top_candidates[way].candidates, two.top_candidates[way].candidates
        )
        torch.testing.assert_close(
            torch.from_numpy(two.top_candidates[way].scores),
            torch.from_numpy(one.top_candidates[way].scores),
        )
    assert (tmp_path / "kept.safetensors").is_file()


def test_a_short_list_longer_than_the_split_is_reported(
    matcher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(compose("eval", [f"checkpoint={matcher}", "device=cpu", "rerank.k=50"]))
    printed = " ".join(capsys.readouterr().out.split())
    assert "rerank.k=50" in printed and "20 images per caption" in printed
    assert found["test/rerank_k"] == 50  # of the 100 captions of each image
    assert "rerank.k" not in (matcher / "train.log").read_text()  # 12 of 20 images


def test_what_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    for more in (["scores=sims.npz"], ["checkpoint=a", "task=zeroshot"]):
        with pytest.raises(ConfigError, match="devices=2"):
            evaluate(compose("eval", [*more, "devices=2"]))


def test_a_batch_that_cannot_be_shared_is_refused(world: Path) -> None:
    given = overrides("hrem", world, "batch_size=20", "devices=3")
    with pytest.raises(ConfigError, match="batch_size=20: .* batch_size=18 or batch_size=21"):
        check_config(compose("train", given))


def test_several_machines_need_a_launcher(world: Path) -> None:
    values = compose("train", overrides("hrem", world, "batch_size=20", "devices=2", "nodes=2"))
    with pytest.raises(ConfigError, match="torchrun --nnodes=2 --nproc-per-node=2"):
        train(values)
