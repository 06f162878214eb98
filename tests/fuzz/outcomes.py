"""Reads damaged files and says what came of it."""

from __future__ import annotations

import contextlib
import logging
import random
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from itr.errors import UserError
from tests.fuzz.kinds import Kind, copy, prepare

SECONDS, MEMORY = 60, 2 << 30
RIGHT, READ, REPORTED, REFUSED = "right", "as changed", "reported", "refused"
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "out of memory")


class Fault(BaseException):
    """An outcome that must not be: a traceback, a hang, too much memory, silence."""


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """The warnings that are logged meanwhile."""
    handler, root = _Lines(), logging.getLogger()
    own = logging.getLogger("itr")
    root.addHandler(handler)
    own.addHandler(handler)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)
        own.removeHandler(handler)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """At most `SECONDS` and `MEMORY` more than now."""

    def late(*_: Any) -> None:
        raise Fault(f"no end after {SECONDS} s")

    status = Path("/proc/self/status").read_text()
    used = int(status.split("VmData:")[1].split()[0]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, folder: Path, intact: Path, expected: Any, seed: str) -> str:
    """Damage a copy of ``intact`` as ``seed`` says and read it.

    Returns one of `RIGHT`, `READ` (the file is valid and says something else), `REPORTED` (a
    warning) and `REFUSED`. Raises Fault for anything else.
    """
    path = copy(folder, intact, folder.with_name(f"{folder.name}-damaged"))
    kind.change(random.Random(seed), path)
    with listening() as lines:
        try:
            with bounded():
                found = kind.read(path)
        except UserError as error:
            return _refused(str(error), kind.named(path))
        except Fault:
            raise
        except BaseException as error:
            raise Fault(f"{type(error).__name__}: {error}\n{traceback.format_exc()}") from error
    if found == expected:
        return REPORTED if lines else RIGHT
    if lines:
        return REPORTED
    if kind.exact:
        raise Fault("other content was read without a word")
    return READ


def _refused(message: str, name: str) -> str:
    if name not in message:
        raise Fault(f"the message does not name {name}: {message}")
    if any(words in message for words in OUT_OF_MEMORY):
        raise Fault(f"more than {MEMORY >> 30} GB were asked for: {message}")
    return REFUSED


class Tally:
    """Counts the outcomes of many kinds, and keeps one example of each fault."""

    def __init__(self, kinds: Mapping[str, Kind], folder: Path):
        self.kinds, self.folder = kinds, folder
        self.intact: dict[str, tuple[Path, Path, Any]] = {}  # folder, file, content
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: dict[str, str] = {}

    def try_one(self, name: str, seed: str) -> None:
        """Damage a file of the kind ``name`` as ``seed`` says and read it."""
        kind = self.kinds[name]
        if name not in self.intact:
            folder = self.folder / f"kind{len(self.intact)}"
            path = prepare(kind, folder)
            self.intact[name] = (folder, path, kind.read(path))
        try:
            found = outcome(kind, *self.intact[name], seed)
        except Fault as fault:
            found, text = "FAULT", str(fault)
            where = [line for line in text.splitlines() if "/itr/" in line]
            key = f"{name}: {text.splitlines()[0][:80]} {where[-1:]}"
            self.faults.setdefault(key, f"{name}, seed {seed!r}: {text}")
        self.counts[name, found] += 1

    def table(self) -> str:
        """One line per kind with the number of each outcome."""
        outcomes = (RIGHT, READ, REPORTED, REFUSED, "FAULT")
        lines = [f"{'':32s}" + "".join(f"{each:>12s}" for each in outcomes)]
        for name in self.intact:
            counts = (self.counts[name, each] for each in outcomes)
            lines.append(f"{name:32s}" + "".join(f"{count:12,}" for count in counts))
        return "\n".join(lines)
