"""Every command, option, file and link on the pages exists and works."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from itr.data.scenes import make
from itr.errors import UserError
from tests.conftest import CONF, ROOT
from tests.docs import checks, pages
from tests.docs.pages import PAGES, Snippet

GENERATED = ("losses.md", "configuration.md")  # by the code; their options are tested elsewhere
README_LINES, README_WIDTH = 160, 120

OVERRIDES = re.compile(r"^[a-z_]+(/[a-z_]+)?(\.[\w*]+)*=.*$")
KEY = re.compile(
    r"^(data|model|loss|trainer|runtime|optim|rerank|hubness|recipe|hydra)(\.[a-z_]+)+$"
)
ENVIRONMENT = re.compile(r"^[A-Z_]+=")
FILE_ENDINGS = {"json", "yaml", "npy", "npz", "md", "py", "csv", "txt", "log", "jsonl", "toml",
                "safetensors"}  # fmt: skip
REPOSITORY = ("conf/", "itr/", "tests/", "docs/", "sweeps/", "benchmarks/")
NOT_OPTIONS = ("LOCKED=", "ITR_CLIPART=")  # environment, make
PACKAGE_OF_THE_READER = ("mymodel", "mylayout", "mypackage")


def every_command() -> list[Snippet]:
    return [snippet for page in PAGES for snippet in pages.fenced_commands(page)]


def every_span() -> list[Snippet]:
    # The architecture page names functions, which a test of its own looks up.
    texts = (page for page in PAGES if page.name not in (*GENERATED, "architecture.md"))
    return [snippet for page in texts for snippet in pages.spans(page)]


def failures(snippets: list[Snippet], prove: Callable[[Snippet], None]) -> str:
    """One line for each snippet that cannot be proven. The same words under the same heading of a
    page are proven once."""
    lines = []
    for snippet in {(one.section, one.text): one for one in snippets}.values():
        try:
            prove(snippet)
        except (UserError, AssertionError, Exception) as error:  # noqa: BLE001
            first = (str(error).splitlines() or [""])[0]
            lines.append(f"{snippet}\n    {type(error).__name__}: {first}")
    return "\n".join(lines)


def entry_of(words: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """``(train or eval, arguments)`` of ``python train.py ...`` and of torchrun."""
    for place, word in enumerate(words):
        if word in ("train.py", "eval.py"):
            return word.removesuffix(".py"), list(words[place + 1 :])
    return None


def prove(snippet: Snippet) -> None:
    words = tuple(itertools.dropwhile(ENVIRONMENT.match, snippet.words))
    if (entry := entry_of(words)) is not None:
        checks.check_entry(*entry)
    elif words[0] == "itr":
        checks.check_itr(words[1:])
    else:
        checks.check_other(words)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the placeholders that parsers look for. No scenes are drawn."""
    (tmp_path / "DIR").mkdir()
    undrawn = functools.wraps(make.prepare)(lambda **_: tmp_path / "DIR")
    monkeypatch.setattr(make, "prepare", undrawn)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_accepted(place: Path) -> None:
    assert not (wrong := failures(every_command(), prove)), f"\n{wrong}"


def test_every_option_in_the_text_exists(place: Path) -> None:
    def prove_span(snippet: Snippet) -> None:
        words = tuple(itertools.dropwhile(ENVIRONMENT.match, snippet.words))
        commands = ("python", "itr", "make", "torchrun", "pip", "wandb")
        if any(word in snippet.text for word in PACKAGE_OF_THE_READER):
            return
        if words[0] in commands and len(words) > 1:
            if words[0] == "itr" and (len(words) <= 3 and "=" not in snippet.text):
                checks.check_command_exists(words[1:])
            elif ">" in words:  # itr losses > FILE
                checks.check_command_exists(words[1:2])
            elif words[0] in ("make", "pip") or re.search(r"=|--", snippet.text):
                prove(snippet)
        elif words[0].startswith("--"):
            known_flags = checks.flags() | {"--quick", "--images", "--pairs"}  # the tutorial's
            unknown = {word for word in words if word.startswith("--")} - known_flags
            assert not unknown, f"no command has {unknown}"
        elif all(OVERRIDES.match(word) for word in words):
            model = snippet.section.replace("-", "").replace("infinity", "")
            known = (CONF / "model" / f"{model}.yaml").is_file()
            checks.check_options_in_text(words, model if known else None)
        elif KEY.match(words[0]) and words[0].rpartition(".")[2] not in FILE_ENDINGS:
            checks.check_key(words[0])

    found = []
    for snippet in every_span():
        try:
            if snippet.words and not snippet.text.startswith(NOT_OPTIONS):
                found.append(snippet)
        except ValueError:  # no shell words
            continue
    assert not (wrong := failures(found, prove_span)), f"\n{wrong}"


def test_every_file_of_the_repository_exists() -> None:
    def prove_file(snippet: Snippet) -> None:
        assert (ROOT / snippet.text).exists(), "no such file"

    named = [
        snippet
        for snippet in every_span()
        if snippet.text.startswith(REPOSITORY)
        and not snippet.text.startswith("conf/local")  # the reader's
        and not re.search(r"[<>*{ ]|\.\.\.|NAME", snippet.text)
    ]
    assert not (wrong := failures(named, prove_file)), f"\n{wrong}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for line, target in pages.links(page):
        file, _, anchor = target.partition("#")
        if file.startswith(("http:", "https:", "mailto:")):
            continue
        path = (ROOT / page.parent / file).resolve() if file else ROOT / page
        if not path.exists():
            broken.append(f"{page}:{line} {target}: no such file")
        elif anchor and anchor not in pages.anchors(path.relative_to(ROOT)):
            broken.append(f"{page}:{line} {target}: no such heading")
    assert not broken, "\n".join(broken)


def test_readme_is_short() -> None:
    lines = pages.read(Path("README.md")).splitlines()
    assert len(lines) <= README_LINES
    wide = [f"{n}: {len(line)}" for n, line in enumerate(lines, 1) if len(line) > README_WIDTH]
    assert not wide, f"longer than {README_WIDTH} characters: {wide}"


def test_every_name_of_the_architecture_is_defined() -> None:
    """`` [`module.Class.method`](../path/module.py) `` names a definition in that file."""
    page = Path("docs/architecture.md")
    cited = re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", pages.read(page))
    assert len(cited) > 30
    missing = []
    for name, target in cited:
        module, _, qualified = name.partition(".")
        path = (ROOT / page.parent / target).resolve()
        if module != path.stem or (qualified != "py" and qualified not in definitions(path)):
            missing.append(f"{name} in {target}")
    assert not missing, missing


def definitions(path: Path) -> set[str]:
    """Qualified names of the functions, classes and methods of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names: set[str] = set()

    def collect(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, kinds):
                names.add(f"{prefix}{child.name}")
                collect(child, f"{prefix}{child.name}.")

    collect(ast.parse(path.read_text(encoding="utf-8")), "")
    return names


def test_readme_leads_to_every_page() -> None:
    targets = {target.partition("#")[0] for _, target in pages.links(Path("README.md"))}
    missing = {str(page) for page in PAGES} - targets - {"README.md"}
    assert not missing, missing
