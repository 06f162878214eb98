"""PlainConsole output of a run: log handlers, and progress as a live bar or as sparse lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from itr.errors import UserError
from itr.results.run_folder import FAILED
from itr.terminal import ConsoleHandler, PlainConsole, PrintableFormatter

log = logging.getLogger("itr")
LINE_EVERY = 10.0  # seconds between progress lines without a terminal
MIN_BAR = 8  # characters
GAPS = 6  # spaces between the seven columns


def open_log(path: Path | None, console: PlainConsole) -> None:
    """Send the package's log to ``console`` and, with timestamps, to the file ``path``."""
    close_log()
    log.setLevel(logging.INFO)
    log.propagate = False
    screen = ConsoleHandler(console)
    screen.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(screen)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)


def close_log() -> None:
    """Detach the log from console and file (a multirun opens it again for each job)."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def log_failure(error: BaseException) -> None:
    """Write why a job ends into its log file alone; the entry point prints it.

    An error of the user is one line; anything else comes with its traceback.
    """
    details = None if isinstance(error, UserError) else (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, f"{FAILED}%s", (error,), details)
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


class ProgressDisplay:
    """Progress of training and, below it, of an evaluation. A context manager.

    ``total`` and ``done`` count updates. With ``training`` false only evaluations are displayed.
    """

    def __init__(self, console: PlainConsole, total: int, done: int = 0, training: bool = True):
        self.console = console
        self.total = total
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", table_column=_fixed()),
            BarColumn(bar_width=None),  # the only column that shrinks
            MofNCompleteColumn(table_column=_fixed()),
            NumbersColumn(self),
            TimeElapsedColumn(table_column=_fixed()),
            TextColumn("left", table_column=_fixed()),
            TimeRemainingColumn(table_column=_fixed()),
            console=console,
            disable=not self.live,
        )
        self.training = self.progress.add_task(
            "train", total=total, completed=done, numbers=(), visible=training
        )
        self.evaluating: TaskID | None = None
        self.began = 0.0  # when the current stage of the evaluation began
        self.started, self.last_line, self.first = time.monotonic(), 0.0, done

    def __enter__(self) -> ProgressDisplay:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def step(self, updates: int) -> None:
        """Set the number of completed updates."""
        self.progress.update(self.training, completed=updates)

    def numbers(self, epoch: int, updates: int, values: dict[str, float]) -> None:
        """Display the values of the last log window; ``epoch`` counts from 1."""
        numbers = (  # the most important first: a narrow terminal drops the last ones
            f"epoch {epoch}",
            f"loss {values['train/loss']:.4g}",
            f"{values['train/pairs_per_second']:.0f} pairs/s",
            f"lr {values['train/lr']:.2g}",
        )
        self.progress.update(self.training, completed=updates, numbers=numbers)
        now = time.monotonic()
        if not self.live and now - self.last_line >= LINE_EVERY:
            self.last_line = now
            done = max(1, updates - self.first)
            left = (now - self.started) / done * (self.total - updates)
            text = "  ".join(numbers)
            log.info("update %d of %d  %s  about %.0f s left", updates, self.total, text, left)

    def evaluation(self, what: str, done: int, total: int) -> None:
        """Report ``done`` of ``total`` in stage ``what``; a complete stage removes its bar."""
        now = time.monotonic()
        if self.evaluating is None:
            self.evaluating = self.progress.add_task(what, total=total, numbers=())
            self.began = self.last_line = now
        self.progress.update(self.evaluating, description=what, completed=done, total=total)
        if not self.live and done < total and now - self.last_line >= LINE_EVERY:
            self.last_line = now
            left = (now - self.began) / max(1, done) * (total - done)
            log.info("%s %d of %d  about %.0f s left", what, done, total, left)
        if done >= total:
            self.progress.remove_task(self.evaluating)
            self.evaluating = None


class NumbersColumn(ProgressColumn):
    """As many of a task's ``numbers`` as the terminal has room for beside the other columns."""

    def __init__(self, display: ProgressDisplay):
        super().__init__(table_column=_fixed())
        self.display = display

    def render(self, task: Task) -> Text:
        """The numbers in one line."""
        tasks = [task for task in self.display.progress.tasks if task.visible]
        others = GAPS + MIN_BAR + len("left")
        others += max(len(task.description) for task in tasks)
        others += max(2 * len(str(int(task.total or 0))) + 1 for task in tasks)
        for times in ("elapsed", "time_remaining"):
            seconds = (int(getattr(task, times) or 0) for task in tasks)
            others += max(len(str(timedelta(seconds=value))) for value in seconds)
        return Text(fitting(task.fields["numbers"], self.display.console.width - others))


def _fixed() -> Column:
    return Column(no_wrap=True)


def fitting(words: Iterable[str], width: int) -> str:
    """The first of ``words``, as many as fit in ``width`` characters."""
    line = ""
    for word in words:
        longer = f"{line}  {word}" if line else word
        if len(longer) > width:
            break
        line = longer
    return line
