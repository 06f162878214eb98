"""The frame of every command: errors that the user can fix become one sentence and an exit code.

This module is on the ground floor so that the commands of `itr.data` and `itr.official` may use it.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from itr.errors import ConfigError, UserError, nearest

USER_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # exit codes; the last two: 128 + the signal

Function = Callable[[Sequence[str]], int | None]  # arguments -> exit code; None: 0


class Command(Protocol):
    """What `command` makes of a function."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run it on ``arguments`` (default: those of the process) and return the exit code."""
        ...


def command(function: Function) -> Command:
    """Decorator: ``function`` as a command whose arguments default to those of the process.

    Example::

        @command
        def main(arguments: Sequence[str]) -> int:
            ...
    """

    @functools.wraps(function)
    def framed(arguments: Sequence[str] | None = None) -> int:
        return run(function, arguments)

    return framed


def run(function: Function, arguments: Sequence[str] | None = None) -> int:
    """Call ``function(arguments)`` and return its exit code.

    A UserError is printed without a traceback (2). An interrupt ends it quietly (130), and
    so does a reader that closed the standard output, as ``| head`` does (141). What the system
    refuses (a full disk, a folder that cannot be written, no memory) becomes a sentence, too (2).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None or arguments is None:  # in a process of its own
        from itr.terminal import repair_streams

        repair_streams()
    try:
        try:
            return function(given) or 0
        finally:  # here and not at exit, where Python reports a closed pipe by itself
            sys.stdout.flush()
    except UserError as error:
        print_error(str(error))
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (OSError, MemoryError, RecursionError) as error:
        if not isinstance(error, BrokenPipeError):
            print_error(explain_system_error(error))
            return USER_ERROR
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


ADVICE = {  # errno -> what to do
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or write to another disk"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "choose another place, or have its permissions changed",
    ),
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EISDIR: "it is a folder; pass a file",
    errno.EEXIST: "choose another name",
    errno.EFBIG: "files may not be that large here (ulimit -f)",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


def explain_system_error(error: OSError | MemoryError | RecursionError) -> str:
    """What the system refused, as a sentence with the file and what to do."""
    if isinstance(error, MemoryError):
        return f"out of memory ({error or 'no size given'}); use less data at once, or more memory"
    if isinstance(error, RecursionError):
        return f"a file is nested too deeply to be read ({error}); check the files that were passed"
    advice = ADVICE.get(error.errno or 0, "check the file, the disk and the network")
    files = " -> ".join(str(f) for f in (error.filename, error.filename2) if f is not None)
    what = error.strerror or str(error) or type(error).__name__
    return f"{files}: {what}; {advice}" if files else f"{what}; {advice}"


def print_error(message: str) -> None:
    """Print ``error: message`` on the standard error, as wide as the terminal."""
    from rich.text import Text  # slow, and most commands print no error

    from itr.terminal import OutputConsole, printable

    text = Text.assemble(("error:", "bold red"), " ", printable(message))
    OutputConsole(stderr=True).print(text, soft_wrap=True)


Commands = Mapping[str, tuple[str, str]]  # command -> ("module:function", what it does)


def run_group(name: str, summary: str, commands: Commands, arguments: Sequence[str]) -> int:
    """Run ``arguments[0]`` of ``commands`` on the other arguments and return its exit code.

    A command's module is imported when the command is called, never before. Raises ConfigError that
    names the nearest command if there is no such command.
    """
    if arguments[:1] in (["--help"], ["-h"], []):
        print(usage(name, summary, commands), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else USER_ERROR
    chosen = arguments[0]
    if chosen not in commands:
        raise ConfigError(
            f"'{name} {chosen}': unknown command{nearest(chosen, commands)} (known: "
            f"{', '.join(commands)})"
        )
    module, _, function = commands[chosen][0].partition(":")
    return getattr(importlib.import_module(module), function)(arguments[1:]) or 0


def usage(name: str, summary: str, commands: Commands) -> str:
    """The help of a group: one line for each command."""
    lines = [f"  {command:10s} {what}" for command, (_, what) in commands.items()]
    head = f"usage: {name} COMMAND ...   ({name} COMMAND --help for the options of one command)"
    return "\n".join([head, "", summary.strip(), "", *lines])
