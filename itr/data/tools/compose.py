"""What ``data=... model=... key=value`` mean on a command line of the data side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from itr.compose import CONF
from itr.data.layouts.registry import DataConfig
from itr.errors import ConfigError
from itr.instantiate import build, check, locate, nearest
from itr.plugins import conf_folders, trust_targets
from itr.view import View

GROUPS = ("data", "model", "task", "recipe", "runtime")


def compose(arguments: Sequence[str]) -> dict[str, Any]:
    """What `train.py` would make of ``arguments``: groups by Hydra, then keys with a dot.

    Raises ConfigError for an argument that is no key=value, or a group, option or key unknown.
    """
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or ("." not in key and key not in GROUPS):
            raise ConfigError(
                f"'{argument}': expected {', '.join(f'{group}=NAME' for group in GROUPS)} or a key "
                f"such as data.root=DIR{nearest(key, GROUPS)}"
            )
    groups = [argument for argument in arguments if "." not in argument.partition("=")[0]]
    for argument in groups:
        _require_option(*argument.split("=", 1))
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = hydra.compose("train", overrides=groups)
        keys = OmegaConf.from_dotlist([a for a in arguments if a not in groups])
        values = OmegaConf.to_container(OmegaConf.merge(config, keys), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _require_option(group: str, option: str) -> None:
    folders = [CONF, *conf_folders().values()]
    known = [path.stem for folder in folders for path in (folder / group).glob("*.yaml")]
    if option not in known:
        raise ConfigError(
            f"{group}={option}: no such option{nearest(option, known)} (options: "
            f"{', '.join(sorted(known))})"
        )


def data_config(values: dict[str, Any]) -> DataConfig:
    """The data node, checked; a set that is made on first use is made."""
    data: DataConfig = check(values["data"], DataConfig, "data")
    if data.prepare is None:
        return data
    root = build({**data.prepare, "parent": data.root}, "data.prepare")
    return check({**values["data"], "root": str(root), "prepare": None}, DataConfig, "data")


def plain_data(keys: Mapping[str, str]) -> DataConfig:
    """A data node of ``data.key -> value`` alone, where no data set is named."""
    node = OmegaConf.to_container(OmegaConf.from_dotlist([f"{k}={v}" for k, v in keys.items()]))
    assert isinstance(node, dict)
    return check({"name": "data", "root": "", **node.get("data", {})}, DataConfig, "data")


def view_of(values: dict[str, Any]) -> View:
    """How the model of the configuration wants its data; found by its ``_target_`` alone."""
    node = values["model"]
    with trust_targets(values):
        cls = locate(node["_target_"], "model")
    return cls.view_for(check(node, cls.Config, "model"))
