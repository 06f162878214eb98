"""train.py and eval.py as a user runs them: processes, files on disk, exit codes, sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, call, call_here

RECALLS = [f"{way}_{key}" for way in ("i2t", "t2i") for key in ("r1", "r5", "r10")]


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A finished run, the arguments that made it, and what it printed."""
    from tests.conftest import TINY

    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = [
        *TINY,
        f"data.root={world / 'data'}",
        f"data.cache={world / 'cache'}",
        f"out={out}",
    ]
    done = call("train.py", *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    return out, arguments, done.stdout


def test_a_run_leaves_what_it_promises(finished: tuple[Path, list[str], str]) -> None:
    out, _, printed = finished
    for name in ("config.yaml", "metrics.jsonl", "results.json", "train.log", "versions.json"):
        assert (out / name).stat().st_size > 0, name
    assert (out / "checkpoints" / "best.safetensors").is_file()
    assert (out / "checkpoints" / "last.safetensors").is_file()
    results = json.loads((out / "results.json").read_text())
    for key in RECALLS:
        assert 0 <= results[f"test/{key}"] <= 100
        assert f"val/{key}" in results
    assert results["test/rsum"] == pytest.approx(sum(results[f"test/{key}"] for key in RECALLS))
    assert results["select_on"] == "val" and results["seed"] == 0
    assert results["recipe"] == "hrem_scenes_retrieval"
    assert results["test/n_images"] == 20 and results["test/n_captions"] == 100
    assert "recipe: hrem_scenes_retrieval" in printed
    assert "i2t R@1/5/10" in printed


def test_metrics_hold_every_logged_value(finished: tuple[Path, list[str], str]) -> None:
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    keys = {key for line in lines for key in line}
    wanted = {"train/loss", "train/base", "train/graph", "train/cross", "train/reg", "train/lr"}
    assert wanted | {"train/grad_norm", "val/rsum", "test/rsum", "step", "epoch"} <= keys
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)


def test_eval_gives_the_numbers_that_training_reported(
    finished: tuple[Path, list[str], str], tmp_path: Path
) -> None:
    out, _, _ = finished
    done = call("eval.py", f"checkpoint={out}", "split=test", f"out={tmp_path}", "device=cpu")
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads((out / "results.json").read_text())
    found = json.loads((tmp_path / "results.json").read_text())
    for key in (*RECALLS, "rsum", "i2t_medr", "t2i_meanr"):
        assert found[f"test/{key}"] == told[f"test/{key}"], key


def test_a_copied_checkpoint_needs_no_run_directory(
    finished: tuple[Path, list[str], str], tmp_path: Path, world: Path
) -> None:
    alone = tmp_path / "elsewhere.safetensors"
    alone.write_bytes((finished[0] / "checkpoints" / "best.safetensors").read_bytes())
    done = call("eval.py", f"checkpoint={alone}", f"data.root={world / 'data'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "rSum" in done.stdout


def test_the_same_command_prints_the_finished_run(
    finished: tuple[Path, list[str], str],
) -> None:
    out, arguments, _ = finished
    before = (out / "metrics.jsonl").read_bytes()
    done = call_here("train.py", *arguments)
    assert done.returncode == 0
    assert "overwrite=true" in done.stdout and "rSum" in done.stdout
    assert (out / "metrics.jsonl").read_bytes() == before


def test_another_configuration_does_not_take_over_a_run_directory(
    finished: tuple[Path, list[str], str],
) -> None:
    done = call("train.py", *finished[1], "seed=7")
    assert done.returncode == 2
    assert "seed: 0 there, 7 now" in done.stderr


def test_multirun_trains_one_run_a_loss(world: Path, tmp_path: Path) -> None:
    from tests.conftest import TINY

    arguments = [*TINY, f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    done = call("train.py", "-m", *arguments, "loss=hrem,infonce", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    runs = sorted((tmp_path / "runs").iterdir())
    losses = [json.loads((run / "results.json").read_text())["loss"] for run in runs]
    assert sorted(losses) == ["hrem", "infonce"]
    table = done.stdout[-2500:]
    assert all(run.name[:20] in table for run in runs), table


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trainer.epoch=3"], "nearest: trainer.epochs"),
        (["model=hrme"], "nearest: hrem"),
        (["data.root=/a,b"], "'data.root=\"/a,b\"'"),
        (["nonsense"], "expected KEY=VALUE"),
        (["data=f30k", "data.root=/nowhere"], "data.root"),
        (["loss.slots.itc=1"], "itc"),
    ],
)
def test_a_mistake_ends_with_a_sentence(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = call_here("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and told in done.stderr
    assert not (tmp_path / "runs").exists()  # nothing half-written


def test_eval_names_a_checkpoint_that_cannot_be_used(
    finished: tuple[Path, list[str], str], tmp_path: Path
) -> None:
    best = (finished[0] / "checkpoints" / "best.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(best[: len(best) // 2])
    torch.save({"state": torch.zeros(1)}, tmp_path / "other.pth")
    for name, told in (
        ("cut.safetensors", "truncated"),
        ("nothing", "does not exist"),
        ("other.pth", "albef, alip, hrem, multisea, user, vse"),
    ):
        done = call_here("eval.py", f"checkpoint={tmp_path / name}")
        assert done.returncode == 2 and told in done.stderr, done.stderr
    assert (ROOT / "eval.py").is_file()
