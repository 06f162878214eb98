"""Reads the pages of the documentation: commands, code spans, links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = tuple(
    sorted(
        path.relative_to(ROOT)
        for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
        if path.name != "LOG.md"
    )
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#+) +(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """A piece of code on a page: its words as a shell sees them, and where it stands."""

    page: Path
    line: int
    section: str  # the heading above it, in lower case
    text: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words of ``text``, without quotes and comments."""
        return tuple(shlex.split(self.text, comments=True))

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text}"


def read(page: Path) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def without_fences(text: str) -> str:
    """``text`` with its fenced blocks blanked; lines keep their numbers."""
    return FENCE.sub(lambda match: "\n" * match.group(0).count("\n"), text)


def fenced_commands(page: Path) -> Iterator[Snippet]:
    """Every command in the page's blocks of ``bash``."""
    text = read(page)
    for block in FENCE.finditer(text):
        if block.group(2) != "bash":
            continue
        line = text.count("\n", 0, block.start()) + 2
        section = _section(text, block.start())
        command = ""
        for number, raw in enumerate(block.group(3).split("\n")):
            command += raw.removesuffix("\\")
            if not raw.endswith("\\"):
                snippet = Snippet(page, line + number, section, " ".join(command.split()))
                if snippet.words:
                    yield snippet
                command = ""


def spans(page: Path) -> Iterator[Snippet]:
    """Every code span in the page's text."""
    text = without_fences(read(page))
    for match in SPAN.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        code = " ".join(match.group(1).split())
        yield Snippet(page, line, _section(text, match.start()), code)


def _section(text: str, position: int) -> str:
    headings = [match.group(2) for match in HEADING.finditer(without_fences(text[:position]))]
    return headings[-1].lower() if headings else ""


def links(page: Path) -> Iterator[tuple[int, str]]:
    """``(line, target)`` of every link and picture."""
    text = without_fences(read(page))
    for match in LINK.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match.group(1)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    names: set[str] = set()
    for match in HEADING.finditer(without_fences(read(page))):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match.group(2)).strip().lower()
        name = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        number, unique = 0, name
        while unique in names:
            number += 1
            unique = f"{name}-{number}"
        names.add(unique)
    return names
