"""Mistakes in a sweep file or on its command line are named; the command line wins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from itr.errors import ConfigError
from itr.sweep.cli import main, parse
from itr.sweep.grid import grid_jobs
from itr.sweep.spec import parse_override, read_sweep

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metod": "grid"}, "nearest: method"),
        ({"method": "brute"}, "grid, random, bayes"),
        ({"program": "training.py"}, "'training.py'"),
        ({"command": ["${env}", "python", "${program}", "${args}"]}, "${args_no_hyphens}"),
        ({"command": None}, "['${env}', python"),
        ({"metric": {"name": "val/rsum", "goal": "up"}}, "metric:"),
        ({"parameters": {}}, "parameters:"),
        ({"parameters": {"seed": {"values": []}}}, "got []"),
        ({"parameters": {"seed": {"values": 3}}}, "got 3"),
        ({"parameters": {"seed": 3}}, "{value: 3}"),
        ({"parameters": {"seed": {"value": 1, "values": [1]}}}, "parameters.seed:"),
        ({"parameters": {"seed": {"values": [0, 1, 0]}}}, "seed=0"),
        ({"parameters": {"trainer.max_steps": {"values": [None, 3]}}}, '"null"'),
        ({"parameters": {"seed": {"valeus": [0]}}}, "nearest: values"),
        ({"parameters": {"optim": {"parameters": {}}}}, "parameters.optim.parameters"),
        ({"parameters": {"optim.lr": {"min": 2.0, "max": 1.0}}}, "max 1.0"),
        ({"parameters": {"out": {"value": "x"}}}, "out=DIR"),
    ],
)
def test_a_mistake_in_the_file(options: dict[str, Any], message: str, sweep_file: Write) -> None:
    path = sweep_file({}, **options)
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"trainer.epoch": {"value": 1}}, "nearest: trainer.epochs"),
        ({"loss": {"values": ["infonse"]}}, "nearest: infonce"),
        ({"loss.slots.bass.margin": {"value": 0.1}}, "bass"),
        ({"model.graph.topk": {"values": ["many"]}}, "model.graph.topk"),
        ({"optim.lr": {"min": 0.1, "max": 1.0}}, "method=optuna trials=30"),
        ({"data.root": {"values": ["a", "b"]}}, "data.root=a"),
    ],
)
def test_a_job_that_cannot_run(
    parameters: dict[str, Any], message: str, sweep_file: Write, tmp_path: Path
) -> None:
    path = sweep_file(parameters)
    with pytest.raises(ConfigError) as caught:
        grid_jobs(read_sweep(path), tmp_path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["seed: {value: 1}\n  seed: {value: 2}", "x: {value: 1, value: 2}"]
)
def test_a_key_twice(text: str, tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(f"program: train.py\nmethod: grid\nparameters:\n  {text}\n")
    with pytest.raises(ConfigError, match=r"(?s)twice.yaml.*duplicate key.*line"):
        read_sweep(path)


def test_all_mistakes_are_reported_at_once(sweep_file: Write) -> None:
    path = sweep_file({}, parameters={"seed": {"values": []}, "out": {"value": 1}}, runcap=3)
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    assert len(str(caught.value).splitlines()) == 3
    (path.parent / "broken.yaml").write_text("program: [")
    with pytest.raises(ConfigError, match="broken.yaml"):
        read_sweep(path.parent / "broken.yaml")
    with pytest.raises(ConfigError, match=str(path)):
        read_sweep(path.parent / "tinny.yaml")


def test_a_grid_is_every_combination_with_the_seed_fastest(
    sweep_file: Write, tmp_path: Path
) -> None:
    path = sweep_file({"seed": {"values": [0, 1]}, "loss": {"values": ["hrem", "infonce"]}})
    jobs = grid_jobs(read_sweep(path), tmp_path)
    assert [job.label for job in jobs] == [
        "loss=hrem seed=0",
        "loss=hrem seed=1",
        "loss=infonce seed=0",
        "loss=infonce seed=1",
    ]
    assert len({job.run for job in jobs}) == 4
    again = read_sweep(path).replace(["seed=1", "loss=triplet,infonce", "runtime.threads=1"])
    labels = [job.label for job in grid_jobs(again, tmp_path)]
    assert labels == ["loss=triplet", "loss=infonce"]
    (same,) = [job for job in grid_jobs(again, tmp_path) if job.label == "loss=infonce"]
    assert same.run == jobs[3].run  # the number of threads is not part of the hash


def test_overrides_are_in_hydras_grammar() -> None:
    assert parse_override("seed=0,1") == ("seed", ("0", "1"))
    assert parse_override("model.itm_depths=[2,0]") == ("model.itm_depths", ("[2,0]",))
    assert parse_override('data.root="/a,b"') == ("data.root", ('"/a,b"',))
    for wrong in ("+seed=1", "~seed", "data.root=/a{b"):
        with pytest.raises(ConfigError, match="expected key=value"):
            parse_override(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["jobs=2"], "sweep file"),
        (["a.yaml", "b.yaml"], "a.yaml b.yaml"),
        (["a.yaml", "jobs=two"], "jobs=two"),
        (["a.yaml", "method=optunna"], "nearest: optuna"),
        (["a.yaml", "trials=3"], "method=optuna"),
        (["a.yaml", "dry=maybe"], "true or false"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_mistake_on_the_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    if message:
        assert message in printed.err
    else:
        assert "itr sweep" in printed.out


def test_options_and_overrides_are_distinguished() -> None:
    options = parse(["jobs=3", "sweeps/a.yaml", "seed=0,1", "retries=0", "out=there"])
    assert (options.jobs, options.retries, options.out) == (3, 0, Path("there"))
    assert options.overrides == ["seed=0,1"]


def test_a_dry_run_prints_commands_and_starts_nothing(
    sweep_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file({"seed": {"values": [0, 1]}})
    assert main([str(path), "dry=true", f"out={tmp_path / 'runs'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("missing: python ") for line in lines)
    assert "resume=auto" in lines[0] and "seed=1" in lines[1]
    assert yaml.safe_load(path.read_text())["parameters"]["seed"]["values"] == [0, 1]
    assert not list((tmp_path / "runs").glob("hrem*"))
