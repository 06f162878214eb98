"""Packages of users: which of them may be imported, and what they add to the suite.

A ``_target_`` outside ``itr`` is imported in two cases only. Either the user wrote it in the
configuration (`trust_targets`), or its package registered itself with an entry point::

    [project.entry-points."itr.plugins"]
    mypackage = "mypackage"

    [project.entry-points."itr.layouts"]
    mylayout = "mypackage.mylayout"

A checkpoint, or any other file, cannot make the suite import anything else. A registered package
may hold a folder ``conf``, whose groups are then known to every command, and layouts: modules with
``find(data)`` and ``KIND`` (``regions`` or ``pixels``).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from itr.errors import ConfigError

SUITE = "itr"
PLUGINS, LAYOUTS = "itr.plugins", "itr.layouts"  # groups of entry points
KINDS = ("regions", "pixels")  # what a layout holds of an image

_trusted: ContextVar[frozenset[str]] = ContextVar("_trusted", default=frozenset())


def package_of(target: str) -> str:
    """The top-level package of a dotted name."""
    return target.partition(".")[0]


@functools.cache
def registered_packages() -> frozenset[str]:
    """Top-level packages with an entry point in one of our groups."""
    points = [*entry_points(group=PLUGINS), *entry_points(group=LAYOUTS)]
    return frozenset(package_of(point.module) for point in points)


@functools.cache
def conf_folders() -> dict[str, Path]:
    """The folder ``conf`` of each registered package that has one, by package. Imports nothing."""
    folders = {}
    for package in sorted(registered_packages()):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            if (folder := Path(location) / "conf").is_dir():
                folders[package] = folder
    return folders


def layout_modules() -> dict[str, Any]:
    """The layout modules that packages registered, imported, by name.

    Raises ConfigError for one that cannot be imported or lacks ``find`` or ``KIND``.
    """
    return {point.name: _layout(point) for point in entry_points(group=LAYOUTS)}


def _layout(point: EntryPoint) -> Any:
    where = f"entry point {point.name} = {point.value!r} (group {LAYOUTS})"
    try:
        module = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: cannot be imported ({error})") from error
    if not callable(getattr(module, "find", None)) or getattr(module, "KIND", None) not in KINDS:
        raise ConfigError(
            f"{where}: expected a module with find(data) and KIND ({' or '.join(KINDS)})"
        )
    return module


def targets_in(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a configuration of nested mappings and lists."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets_in(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from targets_in(value)


@contextmanager
def trust_targets(config: Mapping[str, Any]) -> Iterator[None]:
    """Within this context, the packages of all ``_target_`` in ``config`` may be imported.

    ``config`` must be what the user passed or wrote, never what a checkpoint says.
    """
    token = _trusted.set(_trusted.get() | set(targets_in(config)))
    try:
        yield
    finally:
        _trusted.reset(token)


Job = Callable[[dict[str, Any]], dict[str, Any]]


def trusts_configuration(job: Job) -> Job:
    """Decorator for a job: it trusts the targets of the configuration that it is called with."""

    @functools.wraps(job)
    def trusting(values: dict[str, Any]) -> dict[str, Any]:
        with trust_targets(values):
            return job(values)

    return trusting


def importable(target: str) -> bool:
    """Whether the package of ``target`` may be imported."""
    trusted = {package_of(written) for written in _trusted.get()}
    return package_of(target) in trusted | registered_packages() | {SUITE}


def callable_by_name(target: str, found: Any) -> bool:
    """Whether ``target`` may be used: the user wrote it, or it is defined in its own package.

    Otherwise ``itr.module.rmtree`` could name a function that a module merely imports.
    """
    defined = str(getattr(found, "__module__", ""))
    return target in _trusted.get() or package_of(defined) == package_of(target)
