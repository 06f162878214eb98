"""Checks commands and options of the pages with the code that would run them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import re
import tomllib
from collections.abc import Sequence
from typing import Any
from unittest import mock

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from itr import cli
from itr.completion import SUBCOMMANDS
from itr.data.classification.dataset import ClassificationConfig
from itr.data.config import DataConfig
from itr.data.doctor import cli as doctor
from itr.data.tools import arguments as command_line
from itr.data.tools import bench
from itr.instantiate import check
from itr.jobs.eval.config import EvalConfig, check_options, keep_typed_options
from itr.sweep import cli as sweep_cli
from itr.sweep.grid import make_job, one_at_a_time
from itr.sweep.spec import read_sweep
from itr.training.config import check_config
from tests.conftest import CONF, ROOT

GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} | {"hydra/launcher"}
HYDRA_FLAGS = ("-m", "--multirun")
NAME = "NAME"  # stands for any option of a group


# train.py and eval.py


def check_entry(config_name: str, arguments: Sequence[str]) -> None:
    """Composes and checks the configuration of every run that the arguments ask for."""
    if {"--help", "--config-dir"} & set(arguments):  # a folder of the reader's has a test elsewhere
        return
    for overrides in expanded([word for word in arguments if word not in HYDRA_FLAGS]):
        check_values(config_name, overridden(config_name, overrides), overrides)


def expanded(words: Sequence[str]) -> list[list[str]]:
    """The overrides of a multirun's jobs: the first one, then one value changed at a time."""
    choices = []
    for override in OverridesParser.create().parse_overrides(list(words)):
        text = override.input_line or ""
        key = text.partition("=")[0]
        swept = override.is_sweep_override()
        choices.append(
            [f"{key}={value}" for value in override.sweep_string_iterator()] if swept else [text]
        )
    first = [options[0] for options in choices]
    others = (
        [*first[:place], option, *first[place + 1 :]]
        for place, options in enumerate(choices)
        for option in options[1:]
    )
    return [first, *others]


def overridden(config_name: str, words: Sequence[str]) -> DictConfig:
    """The configuration, not yet resolved: groups by Hydra, then keys. Raises for unknown ones."""
    groups = tuple(word for word in words if word.partition("=")[0] in GROUPS)
    config = composed(config_name, groups).copy()
    keys = [word for word in words if word not in groups]
    for override in OverridesParser.create().parse_overrides(keys):
        _set(config, override.key_or_group, override.value())
    return config


@functools.cache
def composed(config_name: str, groups: tuple[str, ...]) -> DictConfig:
    """What Hydra composes of these groups."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        return loader.load_configuration(config_name, list(groups), RunMode.RUN)


def _set(config: DictConfig, key: str, value: Any) -> None:
    if value == "..." or key.endswith(".*"):  # any value; all keys of a node
        require_key(config, key.removesuffix(".*"))
    else:
        OmegaConf.update(config, key, value)


def require_key(config: DictConfig, key: str) -> None:
    """Raises an error unless ``config`` has the dotted ``key``."""
    node: Any = config
    for part in key.split("."):
        node = node[part]


def check_values(config_name: str, config: DictConfig, overrides: Sequence[str]) -> None:
    """Checks a composed configuration as the job does before it reads any file."""
    OmegaConf.set_struct(config, False)
    config.pop("hydra")  # as `hydra.main` does
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if config_name == "train":
        check_config(_with_a_tower(values))
        return
    options: EvalConfig = check(keep_typed_options(values, list(overrides)), EvalConfig, "")
    check_options(options)
    data = {key: value for key, value in options.data.items() if value is not None}
    if options.task.get("name") == "zeroshot":
        check(data, ClassificationConfig, "data")
    elif "name" in data:
        check(data, DataConfig, "data")


def _with_a_tower(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the tower of the scenes recipe: one on the hub would be asked for."""
    if not (model := values["model"]).get("tower"):
        return values
    recipe = yaml.safe_load((CONF / f"recipe/{model['name']}_scenes_retrieval.yaml").read_text())
    own = {"architecture": recipe["model"]["architecture"], "pretrained": False}
    return {**values, "model": {**model, **own}}


# Options in the text, without their command


def check_options_in_text(words: Sequence[str], model: str | None) -> None:
    """Checks ``key=value`` words against every configuration they may belong to, the one of
    ``model`` (or the default) first. Raises the first error if none takes them."""
    words = [with_a_value(word) for word in words]
    if len(words) == 1 and words[0].partition("=")[0] in GROUPS:
        group, _, option = words[0].partition("=")
        assert (CONF / group / f"{option}.yaml").is_file(), f"{group} has no option {option}"
        return
    errors: list[Exception] = []
    for name, base in contexts(model, words):
        try:
            check_values(name, overridden(name, [*base, *words]), [*base, *words])
            return
        except Exception as error:  # noqa: BLE001  of Hydra, OmegaConf or the suite
            errors.append(error)
    if not _is_sweep_option(words):
        raise errors[0]


def with_a_value(word: str) -> str:
    """``model=`` and ``model=NAME`` with an option of the group, ``key=N`` with a number,
    ``key=a|b`` with the first value."""
    key, _, value = word.partition("=")
    if key in GROUPS and value in ("", NAME):
        return f"{key}={min(path.stem for path in (CONF / key).glob('*.yaml'))}"
    return f"{key}={ {'N': '1', '': '...'}.get(value, value.split('|')[0]) }"


def contexts(model: str | None, words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """``(train or eval, overrides)`` of every configuration that ``words`` may belong to."""
    models = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    named = any(word.startswith("model=") for word in words)
    order = [model or "hrem", *models]
    train = [("train", [] if named else [f"model={name}"]) for name in order]
    launcher = ("train", ["hydra/launcher=slurm"])
    evaluation = ("eval", ["checkpoint=RUN_DIR"])
    zeroshot = ("eval", ["task=zeroshot", "data=imagefolder", "checkpoint=X", "data.root=DIR"])
    tasks = [("train", ["model=albef", f"task={name}"]) for name in ("vqa", "grounding")]
    return [*train, launcher, evaluation, zeroshot, ("train", ["loss=triplet"]), *tasks]


def _is_sweep_option(words: Sequence[str]) -> bool:
    try:
        options = sweep_cli.parse(["sweeps/search_hrem.yaml", "method=optuna", "trials=1", *words])
    except Exception:  # noqa: BLE001
        return False
    return not options.overrides


def check_key(key: str) -> None:
    """Checks a key that is named without a value."""
    for name, base in contexts(None, []):
        try:
            require_key(overridden(name, base), key)
            return
        except Exception:  # noqa: BLE001
            continue
    raise AssertionError(f"no configuration has the key {key}")


# itr ...


class Parsed(Exception):  # noqa: N818
    """The command line was accepted."""


def check_command_exists(words: Sequence[str]) -> None:
    """Checks ``itr COMMAND`` or ``itr COMMAND SUBCOMMAND``."""
    name, *rest = words
    assert name in cli.COMMANDS or name.startswith("--"), f"itr {name}: unknown command"
    known = SUBCOMMANDS.get(name)
    assert not rest or known is None or rest[0] in known, f"itr {name} {rest[0]}: unknown command"


def check_itr(words: Sequence[str]) -> None:
    """Parses a command line with the parser of its command, and runs nothing."""
    check_command_exists(words[:1])
    name, *arguments = words
    if name in ("train", "eval"):
        return check_entry(name, arguments)
    if name == "sweep":
        return _check_sweep(arguments)
    arguments = [with_a_value(word) if word.endswith(f"={NAME}") else word for word in arguments]
    if arguments[:1] == ["check"]:
        doctor.parse_options(arguments[1:])
        return None
    if arguments[:1] == ["bench"]:
        _, rest = bench._parse_options(arguments[1:])
        command_line.compose(rest)
        return None
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(self, *args, **kwargs)
        raise Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_only):
        try:
            code: Any = cli.main(list(words))
        except Parsed:
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    assert code == 0, f"itr {' '.join(words)}: exit code {code}"
    return None


def _check_sweep(arguments: Sequence[str]) -> None:
    options = sweep_cli.parse(arguments)
    sweep = read_sweep(ROOT / options.file).replace(options.overrides)
    make_job(sweep, one_at_a_time(sweep)[0].items(), options.out)


@functools.cache
def flags() -> frozenset[str]:
    """Every ``--option`` that some command's help names."""
    commands = [[name] for name in cli.COMMANDS if name not in ("train", "eval")]
    tools = ("bench", "caption", "check", "clipart", "convert", "features", "guides")
    commands += [["data", name] for name in tools]
    commands += [["official", name] for name in ("inspect", "convert", "export")]
    commands += [["results", name] for name in SUBCOMMANDS["results"]]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for command in commands:
            with contextlib.suppress(SystemExit):
                cli.main([*command, "--help"])
    return frozenset(re.findall(r"--[a-z][a-z-]*", out.getvalue()))


# make and pip


@functools.cache
def make_targets() -> frozenset[str]:
    """The targets of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^([a-z-]+):", text, flags=re.MULTILINE))


@functools.cache
def extras() -> frozenset[str]:
    """The optional dependencies of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return frozenset(project["optional-dependencies"])


def check_other(words: Sequence[str]) -> None:
    """Checks ``make`` targets, ``pip`` extras and the files of ``wandb sweep``."""
    program, *arguments = words
    if program == "make":
        targets = {word for word in arguments if "=" not in word}
        assert targets <= make_targets(), f"no such target: {targets - make_targets()}"
    elif program == "pip":
        named = itertools.chain(*(re.findall(r"\[([\w,]+)\]", word) for word in arguments))
        wanted = {extra for names in named for extra in names.split(",")}
        assert wanted <= extras(), f"no such extra: {wanted - extras()}"
    elif program == "wandb":
        assert all((ROOT / word).is_file() for word in arguments if word.endswith(".yaml"))
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), f"no such file: {arguments[0]}"
    else:
        assert program in ("source", "git", "cd", "eval"), f"unknown program {program}"
