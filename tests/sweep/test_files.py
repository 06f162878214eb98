"""Every file of sweeps/, conf/recipe and conf/experiment composes with known keys only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from itr.errors import ConfigError
from itr.jobs.run_dir import open_run, write_config
from itr.sweep.grid import compose, endpoints
from itr.sweep.spec import RESUME, Sweep, argument, read_sweep
from tests.conftest import CONF, ROOT

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
RECIPES = sorted((CONF / "recipe").glob("*.yaml"))
EXPERIMENTS = sorted((CONF / "experiment").rglob("*.yaml"))


def samples(sweep: Sweep) -> list[dict[str, Any]]:
    """The first values, the last values, and every value that names a file of conf/."""
    first = {key: endpoints(parameter)[0] for key, parameter in sweep.parameters.items()}
    last = {key: endpoints(parameter)[-1] for key, parameter in sweep.parameters.items()}
    files = [
        {**first, key: value}
        for key, parameter in sweep.parameters.items()
        if "." not in key and key != "seed"
        for value in endpoints(parameter)[1:]
    ]
    return [first, *files, *([last] if last not in [first, *files] else [])]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_composes_and_its_values_take_effect(path: Path) -> None:
    sweep = read_sweep(path)
    for choices in samples(sweep):
        values = compose([argument(*choice) for choice in choices.items()], path.name)
        for key, value in choices.items():
            if "." in key or key == "seed":
                node: Any = values
                for part in key.split("."):
                    node = node[part]
                assert node == value, f"{path.name}: {key} is {node}, not {value}"
    ranks = values["task"]["name"] in ("retrieval", "pretrain")
    assert sweep.metric == ("val/rsum" if ranks else "val/accuracy")
    assert sweep.maximize and sweep.description


def test_agents_and_the_local_runner_pass_the_same_arguments() -> None:
    for path in SWEEPS:
        sweep = read_sweep(path)
        chosen = {key: endpoints(parameter)[-1] for key, parameter in sweep.parameters.items()}
        theirs = create_sweep_command_args({"args": {k: {"value": v} for k, v in chosen.items()}})
        assert theirs["args_no_hyphens"] == [argument(*choice) for choice in chosen.items()]
        command = create_sweep_command(yaml.safe_load(path.read_text())["command"])
        assert command[-2:] == ["${args_no_hyphens}", RESUME], path.name
        assert not sweep.extra  # the runner adds resume=auto itself


def test_an_agent_resumes_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = compose(["model=hrem", "data=f30k", RESUME], "agent")
    run, _ = open_run(values)
    write_config(run, values)  # killed right after
    assert open_run(values) == (run, None)
    with pytest.raises(ConfigError, match=RESUME):
        open_run(values | {"resume": None})


def test_every_experiment_is_a_row_of_a_sweep() -> None:
    listed = {
        value
        for path in SWEEPS
        for parameter in read_sweep(path).parameters.values()
        if parameter.key == "experiment"
        for value in parameter.values
    }
    files = {str(p.relative_to(CONF / "experiment").with_suffix("")) for p in EXPERIMENTS}
    assert files == listed and files


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_selected_by_model_data_and_task(path: Path) -> None:
    match = re.fullmatch(r"([a-z]+)_([a-z0-9_]+)_([a-z0-9]+)", path.stem)
    assert match, f"{path.name}: expected <model>_<data>_<task>.yaml"
    model, data, task = match.groups()
    values = compose([f"model={model}", f"data={data}", f"task={task}"], path.name)
    assert values["recipe"]["name"] == path.stem and values["recipe"]["source"]
