"""Options: ``conf/`` holds each default and its help, the code holds each type and its bounds.

A dataclass of options says where its defaults are::

    @dataclass
    @configured("train.yaml", "trainer")
    class TrainerConfig:
        epochs: int = option(at_least=1)

``conf/train.yaml`` then holds ``trainer.epochs: 30  # help``. This module imports nothing but
PyYAML, so that help, completion and messages about keys start at once.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_type_hints

import yaml

from itr.errors import ConfigError, nearest

CONF = Path(__file__).resolve().parent / "conf"
MISSING = "???"  # a value that the user must pass

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., None])


# What the YAML says: defaults and help


class Key(NamedTuple):
    """One key of a configuration file."""

    name: str  # dotted, as on the command line
    value: Any
    source: str  # the value as the file writes it
    help: str  # the comment behind the value; empty: there is none


class File(NamedTuple):
    """A configuration file with the files that its defaults list includes."""

    about: tuple[str, ...]  # the comment lines at its top
    keys: dict[str, Key]
    choices: dict[str, str | None]  # groups of its defaults list -> the option it chooses

    def tree(self) -> dict[str, Any]:
        """The values as nested mappings."""
        root: dict[str, Any] = {}
        for key in self.keys.values():
            *above, leaf = key.name.split(".")
            node = functools.reduce(lambda node, name: node.setdefault(name, {}), above, root)
            node[leaf] = key.value
        return root


@functools.cache
def read(name: str, folder: Path = CONF, package: str | None = None) -> File:
    """``folder/name`` with what it includes. A mapping in flow style, ``{a: 1}``, is one value.

    ``package`` is the prefix of its keys. None: as Hydra has it, the folders of ``name``, or
    nothing where the file's first line is ``# @package _global_``.
    """
    text = (folder / name).read_text("utf-8")
    about, is_global = _top_comment(text)
    group = ".".join(Path(name).parts[:-1])
    prefix = "" if is_global else group if package is None else package
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    keys: dict[str, Key] = {}
    choices: dict[str, str | None] = {}
    if isinstance(root, yaml.MappingNode):
        for item in _defaults_list(root):
            if isinstance(item, Mapping):
                ((choice, option),) = item.items()
                choices[choice.removeprefix("optional ")] = option
            elif item != "_self_":
                keys |= _included(name, item, folder, prefix).keys
        keys |= {key.name: key for key in _keys(root, text.splitlines(), prefix) if key.name}
    return File(about, keys, choices)


def _top_comment(text: str) -> tuple[tuple[str, ...], bool]:
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    is_global = lines[:1] == ["@package _global_"]
    return tuple(line for line in lines if not line.startswith("@package")), is_global


def _defaults_list(root: yaml.MappingNode) -> list[Any]:
    for key, value in root.value:
        if key.value == "defaults":
            return yaml.SafeLoader("").construct_document(value)
    return []


def _included(name: str, item: str, folder: Path, prefix: str) -> File:
    relative, _, package = item.partition("@")
    below = prefix if package in ("", "_here_") else f"{prefix}.{package}".strip(".")
    return read(str(Path(name).parent / f"{relative}.yaml"), folder, below)


def _keys(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[Key]:
    for key, value in node.value:
        if not prefix and key.value in ("defaults", "hydra"):
            continue
        if key.value == "defaults" and isinstance(value, yaml.SequenceNode):
            continue
        name = f"{prefix}.{key.value}".strip(".")
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _keys(value, lines, name)
            continue
        mark = value.end_mark
        behind = lines[mark.line][mark.column :].strip() if mark.line < len(lines) else ""
        source = lines[value.start_mark.line][value.start_mark.column : mark.column]
        help_text = behind.removeprefix("#").strip() if behind.startswith("#") else ""
        # ``construct_document`` empties a loader's caches, so each value gets its own.
        yield Key(name, yaml.SafeLoader("").construct_document(value), source.strip(), help_text)


def options_of(group: str, folders: Iterable[Path] = (CONF,)) -> dict[str, Path]:
    """The options of a group, such as ``model``: name -> file. The first file of a name counts."""
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((folder / group).rglob("*.yaml")):
            files.setdefault(path.relative_to(folder / group).with_suffix("").as_posix(), path)
    return files


# What the code says: types and bounds


def written(value: Any) -> str:
    """A simple value as a configuration file writes it: ``null``, ``true``, ``0.5``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


class Bounds(NamedTuple):
    """What a value must satisfy; null and lists: see `fault`."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None

    def expected(self) -> str:
        """What a message says: ``at least 1``."""
        if self.choices is not None:
            return f"one of {', '.join(map(written, self.choices))}"
        named = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "below": self.below,
        }
        return " and ".join(f"{word} {n:g}" for word, n in named.items() if n is not None)

    def fault(self, value: Any) -> bool:
        """Whether ``value`` is out of bounds. Null is checked by the type alone, unless there are
        choices, and each item of a list is checked for itself."""
        if isinstance(value, list | tuple):
            return any(self.fault(item) for item in value)
        if self.choices is not None:
            return value not in self.choices
        if value is None or isinstance(value, bool | str):
            return False
        return not (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def option(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Iterable[Any] | None = None,
) -> Any:
    """The value of a field (or the default of an argument) whose default is in ``conf/``."""
    allowed = None if choices is None else tuple(choices)
    bounds = Bounds(at_least, above, at_most, below, allowed)
    return dataclasses.field(metadata={"bounds": bounds})


def configured(name: str, at: str = "") -> Callable[[Class], Class]:
    """Decorator below ``@dataclass``: defaults are those of ``conf/name``, below the key ``at``.

    Inherited fields get their defaults there, too. A field without `option` has no default. Raises
    TypeError for a field with a default of its own, and for a key that the file lacks.
    """

    def decorate(cls: Class) -> Class:
        node = _below(read(name).tree(), at)
        hints = get_type_hints(cls)
        for base in reversed(cls.__mro__[1:]):
            for field in dataclasses.fields(base) if dataclasses.is_dataclass(base) else ():
                if field.name not in cls.__annotations__:
                    cls.__annotations__[field.name] = hints[field.name]
                    setattr(cls, field.name, dataclasses.field(metadata=field.metadata))
        for field_name in list(cls.__annotations__):
            if field_name in cls.__dict__:
                where = f"{cls.__qualname__}.{field_name}"
                given = _require_option(cls.__dict__[field_name], where)
                made = _field(node, field_name, hints[field_name], given.metadata, name, where)
                setattr(cls, field_name, made)
        cls.__configured__ = (name, at)  # type: ignore[attr-defined]
        return cls

    return decorate


def _require_option(value: Any, where: str) -> dataclasses.Field[Any]:
    if isinstance(value, dataclasses.Field) and "bounds" in value.metadata:
        return value
    raise TypeError(f"{where}: expected option(...); its default belongs in conf/")


def _below(tree: Any, at: str) -> Any:
    for part in filter(None, at.split(".")):
        tree = tree[part]
    return tree


def _field(
    node: Mapping[str, Any], key: str, kind: Any, metadata: Mapping[str, Any], name: str, where: str
) -> Any:
    if key not in node:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):  # a node of another group
            return dataclasses.field(default_factory=cast(Any, kind), metadata=metadata)
        raise TypeError(f"{where}: conf/{name} has no key {key}")
    value = _literal(node[key])
    if value == MISSING:
        return dataclasses.field(metadata=metadata)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        make = functools.partial(_make, kind, value)
        return dataclasses.field(default_factory=make, metadata=metadata)
    value = _typed(value, kind)
    if isinstance(value, list | dict):
        return dataclasses.field(
            default_factory=functools.partial(copy.deepcopy, value), metadata=metadata
        )
    return dataclasses.field(default=value, metadata=metadata)


def _make(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    made = {}
    for key, value in values.items():
        value, hint = _literal(value), hints[key]
        nested = dataclasses.is_dataclass(hint) and isinstance(value, Mapping)
        made[key] = _make(hint, value) if nested else copy.deepcopy(_typed(value, hint))
    return kind(**made)


SELECT = re.compile(r"^\$\{oc\.select:[\w.]+,(.*)\}$")


def _literal(value: Any) -> Any:
    """``value``, of an interpolation the fallback: ``${oc.select:model.cutoff,1.7}`` -> 1.7."""
    if isinstance(value, str) and (match := SELECT.match(value)):
        return yaml.safe_load(match.group(1))
    return MISSING if isinstance(value, str) and value.startswith("${") else value


def _typed(value: Any, kind: Any) -> Any:
    """Whole numbers as floats where ``kind`` is one, as when Hydra's values are checked."""
    kinds = get_args(kind) or (kind,)
    if isinstance(value, list):
        return [_typed(item, kinds[0] if get_args(kind) else Any) for item in value]
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_int and float in kinds and int not in kinds else value


def configured_arguments(name: str, at: str) -> Callable[[Function], Function]:
    """Decorator of an ``__init__``: its arguments `option` get the defaults of ``conf/name``,
    below the key ``at``. Calling it raises ConfigError for a value out of its bounds."""

    def decorate(function: Function) -> Function:
        node = _below(read(name).tree(), at)
        hints = {k: v for k, v in inspect.get_annotations(function).items() if k != "return"}
        space = vars(sys.modules[function.__module__])
        bounds, defaults = {}, []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is inspect.Parameter.empty:
                continue
            where = f"{function.__qualname__}.{parameter.name}"
            given = _require_option(parameter.default, where)
            kind = eval(str(hints[parameter.name]), dict(space))
            bounds[parameter.name] = given.metadata["bounds"]
            defaults.append(_typed(_literal(node[parameter.name]), kind))

        @functools.wraps(function)
        def checked(self: Any, *given: Any, **named: Any) -> None:
            arguments = inspect.signature(function).bind(self, *given, **named).arguments
            for key, value in arguments.items():
                if key in bounds and bounds[key].fault(value):
                    raise ConfigError(fault_message(key, value, bounds[key]))
            function(self, *given, **named)

        function.__defaults__ = tuple(defaults)
        checked.__bounds__ = bounds  # type: ignore[attr-defined]
        return cast(Function, checked)

    return decorate


def bounds_of(schema: Any) -> dict[str, Bounds]:
    """The bounds of a dataclass's fields, or of a configured function's arguments."""
    if dataclasses.is_dataclass(schema):
        fields = dataclasses.fields(schema)
        return {f.name: f.metadata["bounds"] for f in fields if "bounds" in f.metadata}
    function = schema.__init__ if inspect.isclass(schema) else schema
    return getattr(function, "__bounds__", {})


def faults(values: Any, where: str = "") -> list[str]:
    """A sentence for each field of a dataclass, and of the dataclasses in it, out of its bounds.

    A model without options may have any other configuration, such as None: it has no bounds.
    """
    found: list[str] = []
    if not dataclasses.is_dataclass(values):
        return found
    bounds = bounds_of(type(values))
    for field in dataclasses.fields(values):
        value, path = getattr(values, field.name), f"{where}.{field.name}".strip(".")
        if dataclasses.is_dataclass(value):
            found += faults(value, path)
        elif field.name in bounds and bounds[field.name].fault(value):
            found.append(fault_message(path, value, bounds[field.name]))
    return found


def fault_message(path: str, value: Any, bounds: Bounds) -> str:
    """What is wrong with ``path=value`` and what was expected."""
    items = value if isinstance(value, list | tuple) else [value]
    wrong = next((item for item in items if bounds.fault(item)), value)
    shown = "null" if wrong is None else f"{wrong:g}" if isinstance(wrong, float) else wrong
    hint = nearest(str(wrong), map(str, bounds.choices)) if bounds.choices else ""
    return f"{path}={shown}: expected {bounds.expected()}{hint}"
