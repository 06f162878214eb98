"""Output: escaped, whole lines, and a reader that goes away ends nothing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from itr.command import command, explain_system_error, print_error
from itr.terminal import ConsoleHandler, OutputConsole, printable
from tests.conftest import ROOT
from tests.results.synthetic_runs import run


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("données 数据 [/x] a\tb\n", "données 数据 [/x] a\tb\n"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("half \ud83d", "half \\ud83d"),
        ("\u202egpj", "\\u202egpj"),
        ("\r\x00\x9b", "\\x0d\\x00\\x9b"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_are_not_wrapped_or_padded_without_a_terminal() -> None:
    out = io.StringIO()
    handler = ConsoleHandler(OutputConsole(file=out))
    text = "x" * 300 + " [/y] \x1b"
    handler.emit(logging.LogRecord("itr", logging.INFO, "", 0, "%s", (text,), None))
    assert out.getvalue() == "x" * 300 + " [/y] \\x1b\n"


def test_a_terminal_gets_lines_broken_between_words() -> None:
    out = io.StringIO()
    console = OutputConsole(file=out, force_terminal=True, width=20, color_system=None)
    path = "/a/path/longer/than/the/line"
    console.print(f"  two words and\n{path} and 数据 数据 数据 数据\n\nend", soft_wrap=True)
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        "  two words and", path, "and 数据 数据 数据", "数据", "", "end",
    ]  # fmt: skip


def test_tables_and_errors_fit_a_real_terminal(tmp_path: Path) -> None:
    folder = run(tmp_path / "runs" / "with-a-long-name-of-some-configuration")
    shown = on_a_terminal(80, "-m", "itr", "results", str(folder)).replace("\r\n", "\n")
    assert "i2t R@1" in shown and "|" not in shown and "selected on val" in shown
    assert max(map(len, shown.split("\n"))) <= 80
    where = tmp_path / ("nothing" * 12)
    told = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(80, "-m", "itr", "sync", str(where)))
    assert told.startswith("error:") and str(where) in told
    assert all(len(line) <= 80 or " " not in line for line in told.split("\r\n"))


def on_a_terminal(columns: int, *words: str) -> str:
    """What ``python WORDS`` writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**environment, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while part := os.read(ours, 65536):
            shown += part
    process.wait()
    os.close(ours)
    return shown.decode()


def test_a_reader_that_goes_away_makes_it_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as file:
        console = OutputConsole(file=file)
        console.print("lost")
        console.print("lost, too")
        assert console.quiet


def test_a_closed_file_makes_it_quiet() -> None:
    file = io.StringIO()
    console = OutputConsole(file=file)
    file.close()
    console.print("lost")
    assert console.quiet


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/x/y"),
        OSError(28, "No space left on device"),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(
    error: OSError | MemoryError | RecursionError, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main(arguments: object) -> None:
        raise error

    assert main([]) == 2
    printed = capsys.readouterr().err
    assert printed == f"error: {explain_system_error(error)}\n"
    assert "; " in printed and (not getattr(error, "filename", None) or "/x/y" in printed)


def test_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("x\x1b[2J [/red] " + "y" * 200)
    assert capsys.readouterr().err == "error: x\\x1b[2J [/red] " + "y" * 200 + "\n"


def test_closed_streams_and_small_alphabets() -> None:
    code = "from itr.terminal import repair_streams as r; r(); print(chr(233), chr(0xd83d))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    assert process.stdout == b"\\xe9 \\ud83d\n"
    shell = f"exec {sys.executable} -c '{code}' >&-"
    assert subprocess.run(["sh", "-c", shell], check=False).returncode == 0
