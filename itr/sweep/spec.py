"""Reader for sweep files in the format of Weights & Biases. Reports every mistake at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from itr.errors import ConfigError, nearest

KEYS = (
    "program",
    "name",
    "description",
    "project",
    "entity",
    "method",
    "metric",
    "parameters",
    "early_terminate",
    "run_cap",
    "command",
)
METHODS = ("grid", "random", "bayes")  # those of Weights & Biases
MACROS = ("${env}", "${interpreter}", "${program}", "${args_no_hyphens}")
PARAMETER_KEYS = ("value", "values", "min", "max", "distribution", "q")
RESUME = "resume=auto"  # written out in the file because agents restart a killed job with it
RESERVED_KEYS = {  # set by the runner for each job
    "out": "every job has its own run directory; pass out=DIR on the command line",
    "resume": "unfinished runs are always resumed; remove this key",
    "overwrite": "finished runs are skipped; delete the run directories to train again",
}


@dataclass(frozen=True)
class SweepParameter:
    """One configuration key: a list of ``values``, or a distribution from ``low`` to ``high``."""

    key: str
    values: tuple[Any, ...] = ()
    distribution: str = "categorical"
    low: float | None = None
    high: float | None = None
    step: float | None = None


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file. ``extra`` holds the arguments that its command spells out."""

    name: str
    path: Path
    program: str
    method: str
    metric: str | None
    maximize: bool
    parameters: dict[str, SweepParameter]
    extra: tuple[str, ...] = ()
    description: str = ""
    early_terminate: dict[str, Any] = field(default_factory=dict)

    def replace(self, overrides: Iterable[str]) -> Sweep:
        """A copy in which ``key=value`` (or ``key=a,b`` for several values) wins over the file.

        Raises ConfigError for a malformed override or a reserved key.
        """
        parameters = dict(self.parameters)
        for override in overrides:
            key, values = parse_override(override)
            if key in RESERVED_KEYS:
                raise ConfigError(f"{key}: {RESERVED_KEYS[key]}")
            parameters[key] = SweepParameter(key, values)
        return dataclasses.replace(self, parameters=parameters)

    @property
    def varied(self) -> list[str]:
        """The keys that differ between jobs."""
        return [key for key, p in self.parameters.items() if len(p.values) != 1]


def parse_override(argument: str) -> tuple[str, tuple[Any, ...]]:
    """``seed=0,1`` as ``("seed", ("0", "1"))``, in Hydra's grammar. Raises ConfigError."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise ConfigError(
            f"'{argument}': expected key=value or key=a,b; quote special characters: "
            f"'{argument.partition('=')[0]}=\"...\"'"
        ) from error
    if override.is_delete() or override.is_add() or override.is_force_add():
        raise ConfigError(f"'{argument}': expected key=value without + or ~")
    if override.is_sweep_override():
        return override.get_key_element(), tuple(override.sweep_string_iterator())
    return override.get_key_element(), (argument.partition("=")[2],)


def argument(key: str, value: Any) -> str:
    """``key=value`` exactly as a W&B agent writes ``${args_no_hyphens}``."""
    return f"{key}={value}"


ODD_TAGS = (ValueError, RecursionError, LookupError, AttributeError)  # what odd values raise


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of several equal keys; this loader refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"duplicate key '{key.value}'", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_sweep(path: Path) -> Sweep:
    """The sweep in file ``path``. Raises ConfigError naming the file and every mistake in it."""
    path = Path(path)
    content = _read_yaml(path)
    faults = [
        f"{key}: unknown key{nearest(str(key), KEYS)} (known: {', '.join(KEYS)})"
        for key in content
        if key not in KEYS
    ]
    faults += [
        f"{key}: missing" for key in ("program", "method", "parameters") if key not in content
    ]
    method = content.get("method", "grid")
    if method not in METHODS:
        faults.append(f"method: unknown method '{method}'; expected one of {', '.join(METHODS)}")
    program, extra = _command(content, faults)
    metric, maximize = _metric(content.get("metric"), faults)
    sweep = Sweep(
        name=path.stem,
        path=path,
        program=program,
        method=method,
        metric=metric,
        maximize=maximize,
        parameters=_parameters(content.get("parameters", {}), faults),
        extra=extra,
        description=str(content.get("description") or ""),
        early_terminate=dict(content.get("early_terminate") or {}),
    )
    if faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    return sweep


def _read_yaml(path: Path) -> Mapping[Any, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except FileNotFoundError as error:
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such sweep file{nearest(str(path), siblings)}") from error
    except (yaml.YAMLError, OSError, *ODD_TAGS) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: expected the keys program, method and parameters")
    return content


def _command(content: Mapping[str, Any], faults: list[str]) -> tuple[str, tuple[str, ...]]:
    program = str(content.get("program", ""))
    if program and Path(program).name != "train.py":
        faults.append(f"program: '{program}'; expected train.py")
    command = content.get("command")
    if not isinstance(command, list) or "${args_no_hyphens}" not in command:
        faults.append(
            "command: expected a list with ${args_no_hyphens}; without it agents pass "
            "--key=value, which Hydra cannot read; write\n"
            f"command: ['${{env}}', python, '${{program}}', '${{args_no_hyphens}}', {RESUME}]"
        )
        return program, ()
    words = [str(word) for word in command]
    for word in words:
        if word.startswith("${") and word not in MACROS:
            faults.append(f"command: unknown macro '{word}'; expected {', '.join(MACROS)}")
    after = words[words.index("${program}") + 1 :] if "${program}" in words else []
    extra = tuple(word for word in after if not word.startswith("${") and word != RESUME)
    for word in extra:
        if "=" not in word or word.startswith("-"):
            faults.append(f"command: '{word}' after the program; expected key=value")
    return program, extra


def _metric(node: Any, faults: list[str]) -> tuple[str | None, bool]:
    if node is None:
        return None, True
    goal = node.get("goal", "minimize") if isinstance(node, Mapping) else None
    if goal not in ("maximize", "minimize") or not node.get("name"):
        faults.append("metric: expected {name: val/rsum, goal: maximize}")
        return None, True
    return str(node["name"]), goal == "maximize"


def _parameters(node: Any, faults: list[str]) -> dict[str, SweepParameter]:
    if not isinstance(node, Mapping) or not node:
        faults.append("parameters: expected key: {value: ...} or key: {values: [...]}")
        return {}
    parameters = {}
    for key, options in node.items():
        if key in RESERVED_KEYS:
            faults.append(f"parameters.{key}: {RESERVED_KEYS[key]}")
            continue
        parameter = _parameter(str(key), options, faults)
        if parameter is not None:
            parameters[str(key)] = parameter
    return parameters


def _parameter(key: str, options: Any, faults: list[str]) -> SweepParameter | None:
    where = f"parameters.{key}"
    if not isinstance(options, Mapping):
        faults.append(f"{where}: expected a mapping, got {options!r}; write {{value: {options}}}")
        return None
    unknown = [str(name) for name in options if name not in PARAMETER_KEYS]
    if unknown:
        faults.extend(
            f"{where}.{name}: unknown key{nearest(name, PARAMETER_KEYS)} "
            f"(known: {', '.join(PARAMETER_KEYS)}); write nested keys with dots"
            for name in unknown
        )
        return None
    if "value" in options or "values" in options:
        return _listed(key, options, faults)
    return _ranged(key, options, faults)


def _listed(key: str, options: Mapping[str, Any], faults: list[str]) -> SweepParameter | None:
    where = f"parameters.{key}"
    if "value" in options and "values" in options:
        faults.append(f"{where}: both value and values are set; keep one")
        return None
    values = options["values"] if "values" in options else [options["value"]]
    if not isinstance(values, list) or not values:
        faults.append(f"{where}.values: expected a list such as [0, 1], got {values!r}")
        return None
    if any(value is None for value in values):
        faults.append(f'{where}: agents pass null as the word None; write "null" in quotes')
        return None
    if any(isinstance(value, Mapping) for value in values):
        faults.append(f"{where}: a mapping is not allowed as a value; use dotted keys (a.b: ...)")
        return None
    texts = [argument(key, value) for value in values]
    repeated = {text for text in texts if texts.count(text) > 1}
    if repeated:
        faults.append(f"{where}.values: repeated values: {', '.join(sorted(repeated))}")
    return SweepParameter(key, tuple(values))


def _ranged(key: str, options: Mapping[str, Any], faults: list[str]) -> SweepParameter | None:
    where = f"parameters.{key}"
    if "min" not in options or "max" not in options:
        faults.append(f"{where}: expected value, values, or min and max")
        return None
    try:
        low, high = float(options["min"]), float(options["max"])
        step = float(options["q"]) if "q" in options else None
    except (TypeError, ValueError):
        faults.append(f"{where}: min, max and q must be numbers")
        return None
    if low >= high:
        faults.append(f"{where}: min {options['min']} must be below max {options['max']}")
    whole = isinstance(options["min"], int) and isinstance(options["max"], int)
    distribution = options.get("distribution", "int_uniform" if whole else "uniform")
    return SweepParameter(key, (), str(distribution), low, high, step)
