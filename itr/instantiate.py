"""From a checked configuration node to an object: ``_target_`` is the registry.

Nodes also come from files that somebody else wrote, so nothing in them is interpolated here. Hydra
has resolved what the user typed before a job is called.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import marshal
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from itr import plugins
from itr.errors import ConfigError, nearest
from itr.options import MISSING, bounds_of, faults

RESERVED = ("_target_", "name")  # keys of a node that are not arguments
# OmegaConf interpolates "${". A Unicode noncharacter stands for its "$" while OmegaConf has it.
INTERPOLATION, LITERAL = "${", "\ufdd0{"
FREE = (dict[str, Any], dict[str, Any] | None)  # what a node of another schema is checked by later
MOST_KEPT = 256  # of what `check` keeps: valid nodes, and schemas as OmegaConf has them

_valid: dict[tuple[type, str, bytes], Any] = {}
_structured = functools.lru_cache(maxsize=MOST_KEPT)(OmegaConf.structured)


def locate(target: str, where: str) -> Any:
    """The class or function that ``target`` names.

    Outside the suite, only what `itr.plugins` allows is imported. Raises ConfigError for any other
    target, and for one that does not exist.
    """
    target = str(target)
    module_name, _, attribute = target.rpartition(".")
    refused = ConfigError(
        f"{where}._target_: '{target}' is not part of this suite, and neither this command's "
        f"configuration nor an entry point names its package. Expected itr.<module>.<name>; to use "
        f"a package of your own, see {plugins.PLUGINS} in CONTRIBUTING.md"
    )
    if not module_name or not plugins.importable(target):
        raise refused
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}._target_: '{target}' cannot be imported ({error})") from error
    if not plugins.callable_by_name(target, found):
        raise refused
    return found


@functools.lru_cache(maxsize=MOST_KEPT)
def schema_of(function: Callable[..., Any]) -> type:
    """A dataclass with a field for each argument of ``function`` (its typed options)."""
    signature = inspect.signature(function)
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    bounds, fields = bounds_of(function), []
    for parameter in signature.parameters.values():
        kind = hints.get(parameter.name, Any)
        if parameter.default is inspect.Parameter.empty:
            fields.append((parameter.name, kind, dataclasses.field(default=MISSING)))
        else:
            metadata = {"bounds": bounds[parameter.name]} if parameter.name in bounds else None
            field = dataclasses.field(default=parameter.default, metadata=metadata)
            fields.append((parameter.name, kind, field))
    return dataclasses.make_dataclass("Options", fields)


def _unknown_keys(values: Mapping[str, Any], schema: type, where: str) -> list[str]:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = get_type_hints(schema)
    found = []
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            found.append(
                f"{path}: unknown key{nearest(str(key), fields)} (known: {', '.join(fields)})"
            )
        elif isinstance(value, Mapping) and (nested := _dataclass_in(hints[key])) is not None:
            found.extend(_unknown_keys(value, nested, path))
    return found


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that ``hint`` is, or may be beside None."""
    kinds = get_args(hint) or (hint,)
    return next((k for k in kinds if isinstance(k, type) and dataclasses.is_dataclass(k)), None)


def _replaced(value: Any, old: str, new: str) -> Any:
    """``value`` with ``new`` for ``old`` in its strings, at any depth."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, Mapping):
        return {_replaced(k, old, new): _replaced(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    if isinstance(value, tuple):
        return tuple(_replaced(item, old, new) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            changed = _replaced(getattr(value, field.name), old, new)
            object.__setattr__(value, field.name, changed)  # it may be frozen
    return value


def check(node: Mapping[str, Any], schema: type, where: str) -> Any:
    """``node`` as an instance of the dataclass ``schema``, every key known, every value typed and
    within its bounds.

    Strings are taken literally: ``${...}`` is not interpolated. Raises ConfigError that names the
    key, what was found and the nearest valid names.
    """
    values = {str(key): value for key, value in node.items() if key != "_target_"}
    if "name" not in {field.name for field in dataclasses.fields(schema)}:
        values.pop("name", None)
    if unknown := _unknown_keys(values, schema, where):
        raise ConfigError("\n".join(unknown))
    checked = _typed(values, schema, where)
    if out_of_bounds := faults(checked, where):
        raise ConfigError("\n".join(out_of_bounds))
    return checked


def _typed(values: dict[str, Any], schema: type, where: str) -> Any:
    """``values`` as an instance of ``schema``, every value typed. What was found is kept and
    copied: a run asks for the same nodes many times, at up to 40 ms."""
    try:
        written = marshal.dumps(values, 2)  # of plain values only, and 1, 1.0 and true differ
    except ValueError:
        return _converted(values, schema, where)
    if (checked := _valid.get((schema, where, written))) is None:
        checked = _converted(values, schema, where)
        if len(_valid) >= MOST_KEPT:
            _valid.clear()
        _valid[schema, where, written] = checked
    return copy.deepcopy(checked)


def _converted(values: dict[str, Any], schema: type, where: str) -> Any:
    """Each nested dataclass by itself, since the next node may differ in another one; free
    dictionaries as they are; the rest by OmegaConf."""
    hints = get_type_hints(schema)
    parts: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}".strip(".")
        if isinstance(value, Mapping) and (nested := _dataclass_in(hints[key])) is not None:
            parts[key] = _typed(dict(value), nested, path)
        elif isinstance(value, dict) and hints[key] in FREE and all(map(_is_text, value)):
            if missing := _missing_in(value, path):
                raise _no_value(missing[0])
            parts[key] = value
    rest = {key: value for key, value in values.items() if key not in parts}
    own = _by_omegaconf(rest, _without(schema, frozenset(parts)), where)
    names = {field.name for field in dataclasses.fields(schema)} - set(parts)
    return schema(**{name: getattr(own, name) for name in names}, **parts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _missing_in(node: Mapping[str, Any], path: str) -> list[str]:
    """The keys below ``path`` that have no value."""
    found = []
    for key, value in node.items():
        if value == MISSING:
            found.append(f"{path}.{key}")
        elif isinstance(value, Mapping):
            found.extend(_missing_in(value, f"{path}.{key}"))
    return sorted(found)


def _no_value(key: str) -> ConfigError:
    return ConfigError(f"{key}: has no value; pass {key}=...")


@functools.lru_cache(maxsize=MOST_KEPT)
def _without(schema: type, names: frozenset[str]) -> type:
    """The dataclass ``schema`` without the fields ``names``."""
    hints, fields = get_type_hints(schema), []
    for field in dataclasses.fields(schema):
        if field.name in names:
            continue
        if field.default_factory is not dataclasses.MISSING:
            copied = dataclasses.field(default_factory=field.default_factory)
        else:
            given = field.default
            copied = dataclasses.field(default=MISSING if given is dataclasses.MISSING else given)
        fields.append((field.name, hints[field.name], copied))
    return dataclasses.make_dataclass("Options", fields)


def _by_omegaconf(values: dict[str, Any], schema: type, where: str) -> Any:
    try:
        literal = _replaced(values, INTERPOLATION, LITERAL)
        merged = OmegaConf.merge(_structured(schema), literal)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise _no_value(f"{where}.{missing[0]}".strip("."))
        return _replaced(OmegaConf.to_object(merged), LITERAL, INTERPOLATION)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        path = f"{where}.{key}".strip(".")
        reason = str(error).splitlines()[0].replace(LITERAL, INTERPOLATION)
        raise ConfigError(f"{path}: {reason}") from error


def build(node: Mapping[str, Any], where: str) -> Any:
    """The object of a node ``{_target_: ..., option: value, ...}``, its options checked first."""
    if "_target_" not in node:
        raise ConfigError(f"{where}: has no _target_; expected {{_target_: itr.<module>.<name>}}")
    target = locate(node["_target_"], where)
    options = check(node, schema_of(target), where)
    return target(**{f.name: getattr(options, f.name) for f in dataclasses.fields(options)})
