"""Prints: text from outside is escaped; a lost reader or a small alphabet ends nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import unicodedata
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

WIDE = 500  # columns without a terminal: no path is broken into two lines


def printable(text: str) -> str:
    r"""``text`` with control characters and half surrogate pairs as ``\x1b`` and ``\ud83d``.

    Line ends and tabs stay. A file name could otherwise move the cursor or hide what follows it.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs", "Co", "Cf") else _escaped(c)
        for c in text
    )


def _escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def repair_streams() -> None:
    """Make the standard streams safe to print on.

    A closed one (``>&-``) becomes the null device, before a file of ours takes its number. What a
    terminal's alphabet lacks (ASCII, Latin-1) is replaced.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors="backslashreplace"))
        elif name != "stdin" and hasattr(stream, "reconfigure"):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")


def line_breaks(line: str, width: int) -> list[int]:
    """Where to break ``line``, between words, so that no part of several words is wider than
    ``width`` columns."""
    breaks, used = [], 0
    for word in re.finditer(r"(^\s+)?\S+\s*", line):
        if used and used + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    return breaks


class PlainConsole(Console):
    """Shows text as it is: no markup, no highlighting, escaped by `printable`.

    That includes the cells, titles and captions of tables. Without a terminal lines are as long as
    they are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = WIDE

    def render_str(self, text: str, **options: Any) -> Text:
        """``text`` as the library shows it, escaped first."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Like the library's; with ``soft_wrap`` lines are broken between words on a terminal, but
        never in a word, so that a path can be copied."""
        if soft_wrap and self.is_terminal:
            objects = tuple(self._between_words(each) for each in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def _between_words(self, shown: Any) -> Any:
        if not isinstance(shown, str | Text):
            return shown
        text = Text(printable(shown)) if isinstance(shown, str) else shown
        parts = [
            part
            for line in text.split("\n", allow_blank=True)
            for part in line.divide(line_breaks(line.plain, self.width))
        ]
        for part in parts:
            part.rstrip()
        return Text("\n").join(parts)

    def on_broken_pipe(self) -> None:
        """Let `itr.command` end the process, instead of ending it here."""
        raise BrokenPipeError


class OutputConsole(PlainConsole):
    """The standard output of a job that goes on when nobody reads it any more."""

    def on_broken_pipe(self) -> None:
        """Go quiet, instead of ending the process as the library does."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            descriptor = self.file.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except (OSError, ValueError):  # the terminal is gone, or the file is closed
            del self._buffer[:]
            self.on_broken_pipe()


def say(*words: object) -> None:
    """``print``, escaped."""
    print(*(printable(str(word)) for word in words))


class ConsoleHandler(logging.Handler):
    """Prints log messages on a console: no padding, no markup, escaped."""

    def __init__(self, console: PlainConsole):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        style = "yellow" if record.levelno == logging.WARNING else ""
        text = Text(printable(self.format(record)), style=style)
        self.console.print(text, soft_wrap=not self.console.is_terminal)


class PrintableFormatter(logging.Formatter):
    """Escapes control characters, so that a log file can be shown on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The escaped line."""
        return printable(super().format(record))
