"""Composes a configuration with Hydra, as the entry points do. Its errors become sentences."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itr.errors import ConfigError
from itr.hydra_words import expand_paths, readable
from itr.options import CONF as CONF
from itr.plugins import conf_folders

if TYPE_CHECKING:
    from omegaconf import DictConfig

GROUP = re.compile(r"(~(?=[^=]*$)|\+(?=.*=))?(?P<group>[\w/]+)(=([\w/-]+|\[[\w,/ -]*\]))?")
VALUE = re.compile(r"(?!hydra\b)\w+(\.\w+)*=")


def compose(name: str, overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """The configuration ``name`` (``train`` or ``eval``) with ``overrides``, unresolved.

    ``folders`` are searched for options, too, as with ``--config-dir``. Raises what Hydra raises.
    Without ``folders``, a process reads the files of one choice of groups (``model=hrem``) once,
    and sets the values (``seed=3``) in a copy, which takes a tenth of the time.
    """
    if folders:
        searched = ",".join(f"file://{folder.resolve()}" for folder in folders)
        return _composed_by_hydra(name, (*overrides, f"hydra.searchpath=[{searched}]"))
    groups = tuple(override for override in overrides if _chooses_from_a_group(override))
    values = [override for override in overrides if override not in groups]
    if all(map(VALUE.match, values)):
        config = copy.deepcopy(_choice_of_groups(name, groups, _state_of_files()))
        if _set_values(config, values):
            return config
    return _composed_by_hydra(name, tuple(overrides))  # the rest, and how to refuse it


def _composed_by_hydra(name: str, overrides: tuple[str, ...]) -> DictConfig:
    import hydra  # here and below: half a second that help and completion do without
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(name, overrides=list(overrides))


@functools.lru_cache(maxsize=64)
def _choice_of_groups(name: str, groups: tuple[str, ...], files: object) -> DictConfig:
    return _composed_by_hydra(name, groups)


def _state_of_files() -> object:
    """What changes when a file that Hydra may read is written: a sweep may take days."""
    folders = [CONF.resolve(), *conf_folders().values()]
    files = sorted(file for folder in folders for file in folder.rglob("*.yaml"))
    return tuple((file, (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)


def _chooses_from_a_group(override: str) -> bool:
    """Whether ``override`` is GROUP=NAME or ~GROUP, which change what files are read."""
    match = GROUP.fullmatch(override)
    return match is not None and (CONF / match["group"]).is_dir()


def _set_values(config: DictConfig, overrides: Sequence[str]) -> bool:
    """Set the values as Hydra does. False if it would refuse one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_sweep_override():
                return False
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def compose_values(
    name: str, overrides: Sequence[str], require_values: bool = True
) -> dict[str, Any]:
    """The resolved configuration as nested dictionaries.

    ``require_values`` false: keys that have no value yet stay ``???``. Raises ConfigError that
    names the argument that is wrong and what to pass.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from itr.override_errors import explain, explain_value

    try:
        config = compose(name, readable(overrides))
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=require_values)
    except HydraException as error:
        raise ConfigError(explain(error, name, list(overrides))) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain_value(error)) from error
    assert isinstance(values, dict)
    return expand_paths({str(key): value for key, value in values.items()})
