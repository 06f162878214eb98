"""Escapes text from outside (names, captions, paths) for Markdown, LaTeX and CSV.

HTML is escaped by its templates, the terminal by `itr.terminal`.
"""

from __future__ import annotations

import re
from typing import Any

from itr.terminal import printable

MARKDOWN = re.compile(r"[|<`]|(?<=\])\(")  # cells, HTML, code, links and images
LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
         "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
         "±": r"$\pm$", "–": "--", "†": r"$\dagger$", "‡": r"$\ddagger$",
         "◆": r"$\blacklozenge$"}  # fmt: skip
FORMULA = ("=", "@", "+", "-", "\t", "\r")  # first characters of what a spreadsheet computes


def one_line(text: str) -> str:
    """``text`` without control characters and line ends."""
    return printable(" ".join(text.splitlines()))


def markdown(text: str) -> str:
    """``text`` inside a cell or a line of Markdown."""
    return MARKDOWN.sub(r"\\\g<0>", one_line(text))


def latex(text: str) -> str:
    """``text`` in LaTeX; the symbols of our tables need amssymb."""
    return "".join(LATEX.get(character, character) for character in one_line(text))


def csv_cell(value: Any) -> Any:
    """``value`` for a spreadsheet, which would compute what looks like a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) else text
