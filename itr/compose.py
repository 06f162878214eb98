"""Composes a configuration with Hydra, as the entry points do. Its errors become sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itr.errors import ConfigError
from itr.hydra_words import expand_paths, readable
from itr.options import CONF as CONF

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose(name: str, overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """The configuration ``name`` (``train`` or ``eval``) with ``overrides``, unresolved.

    ``folders`` are searched for options, too, as with ``--config-dir``. Raises what Hydra raises.
    """
    import hydra  # here and below: half a second that help and completion do without
    from hydra.core.global_hydra import GlobalHydra

    given = list(overrides)
    if folders:
        given.append(f"hydra.searchpath=[{','.join(f'file://{f.resolve()}' for f in folders)}]")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(name, overrides=given)


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
