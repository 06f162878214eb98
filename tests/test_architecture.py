"""The structure of ``itr/``, read from its source: import order, sizes, unique names."""

from __future__ import annotations

import ast
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A module imports from its own room and from floors below it, never from above or beside it.
# A module belongs to the longest name that matches; every other module is on the ground floor.
FLOORS = (
    ("itr.__main__", "itr.completion"),
    ("itr.cli",),
    ("itr.sweep",),
    ("itr.jobs",),
    ("itr.training",),
    ("itr.results",),
    ("itr.tasks",),
    ("itr.evaluation",),
    ("itr.official",),
    ("itr.models",),
    ("itr.nn", "itr.losses"),
    ("itr.data.__main__",),
    ("itr.data.doctor",),
    ("itr.data.tools",),
    ("itr.data.loading", "itr.data.classification", "itr.data.checks", "itr.data.downstream"),
    ("itr.data.images",),
    ("itr.data.layouts", "itr.data.text", "itr.data.scenes"),
    ("itr.data",),
)
GROUND = "ground floor"
LAZY_API = "itr"  # itr.load and itr.evaluate, imported when they are used

MAX_MODULES = {"itr/data": 15, "itr/jobs": 15, "itr/training": 15, "itr/results": 15}
MAX_MODULES_ELSEWHERE = 25
P90_FUNCTION, P90_FILE = 25, 300  # lines

# Module names that several rooms share because they mean the same thing in each.
ROLES = {"__init__", "__main__", "cli", "config"}
METHODS = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}  # models/, official/
OPEN_MODULES = {"compose"}  # data/tools/compose.py is about to join itr/compose.py


@functools.cache
def modules() -> dict[str, Path]:
    """Module name -> file, for all of ``itr/``."""
    files = (path.relative_to(ROOT) for path in (ROOT / "itr").rglob("*.py"))
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
        if path.parts[1] != "conf"
    }


@functools.cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse((ROOT / modules()[module]).read_text(encoding="utf-8"))


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` except those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.orelse:
                yield statement
                yield from runtime_nodes(statement)
        else:
            yield child
            yield from runtime_nodes(child)


def absolute(module: str, statement: ast.ImportFrom) -> str:
    """The module that ``from ... import`` names, also where it is relative."""
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")
    if modules()[module].name == "__init__.py":
        parts.append("")
    return ".".join([*parts[: -statement.level], *filter(None, [statement.module])])


def imported(module: str) -> Iterator[str]:
    """Every module of ``itr`` that ``module`` imports, inside functions, too."""
    for node in runtime_nodes(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(module, node)
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield submodule if submodule in modules() else source


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module -> modules of ``itr`` that it imports."""
    return {
        module: {name for name in imported(module) if name in modules()} - {module}
        for module in modules()
        if module != LAZY_API
    }


def room(module: str) -> str:
    """The room that ``module`` belongs to."""
    rooms = [
        name for name in itertools.chain(*FLOORS) if module == name or module.startswith(f"{name}.")
    ]
    return max(rooms, key=len, default=GROUND)


def floor(name: str) -> int:
    """The number of floors above room ``name``."""
    return next((i for i, rooms in enumerate(FLOORS) if name in rooms), len(FLOORS))


def definitions(*kinds: type) -> Iterator[tuple[str, ast.AST]]:
    """``(module, node)`` of every definition of these kinds in ``itr/``."""
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, kinds):
                yield module, node


def p90(values: list[int]) -> int:
    """The smallest value that at least 90 % of ``values`` do not exceed."""
    return sorted(values)[-(-9 * len(values) // 10) - 1]


def test_imports_have_no_cycle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(error.args[1]))


def test_rooms_import_only_from_lower_floors() -> None:
    upward = [
        f"{module} ({room(module)}) imports {name} ({room(name)})"
        for module, names in sorted(graph().items())
        for name in sorted(names)
        if room(module) != room(name) and floor(room(module)) >= floor(room(name))
    ]
    assert not upward, "\n".join(["imports from the same or a higher floor:", *upward])


def test_every_folder_has_a_room() -> None:
    folders = {module.split(".")[1] for module in modules() if module.count(".") > 1}
    rooms = {name.split(".")[1] for name in itertools.chain(*FLOORS)}
    assert folders <= rooms, f"add these folders to FLOORS: {sorted(folders - rooms)}"


def test_folders_hold_few_modules() -> None:
    counts = Counter(str(path.parent) for path in modules().values() if path.name != "__init__.py")
    crowded = []
    for folder, count in counts.items():
        top = "/".join(folder.split("/")[:2])
        most = MAX_MODULES.get(top, MAX_MODULES_ELSEWHERE)
        if count > most:
            crowded.append(f"{folder}: {count} modules, at most {most}")
    assert not crowded, "\n".join(crowded)


def test_functions_and_files_are_short() -> None:
    functions = [
        node.end_lineno - node.lineno + 1
        for _, node in definitions(ast.FunctionDef, ast.AsyncFunctionDef)
    ]
    files = [len((ROOT / path).read_text().splitlines()) for path in modules().values()]
    assert p90(functions) <= P90_FUNCTION, f"p90 of functions: {p90(functions)} lines"
    assert p90(files) <= P90_FILE, f"p90 of files: {p90(files)} lines"


def test_module_names_are_unique() -> None:
    paths = defaultdict(list)
    for path in modules().values():
        paths[path.stem].append(str(path))
    allowed = ROLES | METHODS | OPEN_MODULES
    repeated = {name: p for name, p in paths.items() if len(p) > 1 and name not in allowed}
    assert not repeated, "\n".join(f"{name}: {', '.join(p)}" for name, p in repeated.items())


def test_class_names_are_unique() -> None:
    places = defaultdict(list)
    for module, node in definitions(ast.ClassDef):
        places[node.name].append(f"{modules()[module]}:{node.lineno}")
    repeated = {name: p for name, p in places.items() if len(p) > 1}
    assert not repeated, "\n".join(f"{name}: {', '.join(p)}" for name, p in repeated.items())


# Commands that print help, JSON or tables of their own; all other text may come from outside.
PRINTING = {
    "itr.cli", "itr.command", "itr.completion", "itr.data.doctor.cli", "itr.data.tools.bench",
    "itr.help", "itr.jobs.commands.losses_cli", "itr.jobs.entry", "itr.terminal",
}  # fmt: skip


def test_text_from_outside_is_printed_in_one_place() -> None:
    bare = [
        f"{modules()[module]}:{node.lineno}: use itr.terminal"
        for module in modules()
        if module not in PRINTING
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    consoles = [
        f"{modules()[module]}: use itr.terminal.PlainConsole"
        for module in modules()
        if module != "itr.terminal" and "rich.console" in ast.unparse(tree(module))
    ]
    assert not bare + consoles, "\n".join(bare + consoles)
