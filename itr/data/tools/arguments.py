"""Reads ``data=NAME model=NAME KEY=VALUE`` on the command lines of the data commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from itr.compose import compose_values
from itr.data.layouts.registry import DataConfig
from itr.errors import ConfigError, nearest
from itr.instantiate import build, check, locate
from itr.plugins import trust_targets
from itr.view import View

GROUPS = ("data", "model", "task", "recipe", "runtime")


def compose(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration that `train.py` would compose from ``arguments``.

    Raises ConfigError for an argument that is not KEY=VALUE, or an unknown group, option or key.
    """
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or ("." not in key and key not in GROUPS):
            raise ConfigError(
                f"'{argument}': expected {', '.join(f'{group}=NAME' for group in GROUPS)} or a key "
                f"such as data.root=DIR{nearest(key, GROUPS)}"
            )
    return compose_values("train", list(arguments), require_values=False)


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
