"""What a person sees: a live bar on a terminal, sparse lines elsewhere, and a log file."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger("itr")
LINE_EVERY = 10.0  # seconds between lines where there is no terminal


def open_log(path: Path | None, console: Console) -> None:
    """Send the package's log to ``console`` and, with times, to the file ``path``."""
    close_log()
    log.setLevel(logging.INFO)
    log.propagate = False
    shown = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    shown.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(shown)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = logging.FileHandler(path)
        kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(kept)


def close_log() -> None:
    """Detach the log from console and file (a multirun opens it anew for each job)."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


class Display:
    """Progress of training and, below it, of an evaluation (alone: ``training`` false). A context
    manager."""

    def __init__(self, console: Console, total: int, done: int = 0, training: bool = True):
        self.console = console
        self.total = total
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )
        self.training = self.progress.add_task(
            "train", total=total, completed=done, numbers="", visible=training
        )
        self.evaluating: TaskID | None = None
        self.began = 0.0  # when the evaluation's current part began
        self.started, self.last_line, self.first = time.monotonic(), 0.0, done

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def step(self, updates: int) -> None:
        """``updates`` are done in all."""
        self.progress.update(self.training, completed=updates)

    def numbers(self, epoch: int, updates: int, values: dict[str, float]) -> None:
        """Show the values of the last logging window."""
        text = (
            f"epoch {epoch + 1}  loss {values['train/loss']:.4g}  lr {values['train/lr']:.2g}  "
            f"{values['train/pairs_per_second']:.0f} pairs/s"
        )
        self.progress.update(self.training, completed=updates, numbers=text)
        now = time.monotonic()
        if not self.live and now - self.last_line >= LINE_EVERY:
            self.last_line = now
            done = max(1, updates - self.first)
            left = (now - self.started) / done * (self.total - updates)
            log.info("update %d of %d  %s  about %.0f s left", updates, self.total, text, left)

    def evaluation(self, what: str, done: int, total: int) -> None:
        """Progress of an evaluation (``done`` of ``total``); the bar goes when it is complete."""
        now = time.monotonic()
        if self.evaluating is None:
            self.evaluating = self.progress.add_task(what, total=total, numbers="")
            self.began = self.last_line = now
        self.progress.update(self.evaluating, description=what, completed=done, total=total)
        if not self.live and done < total and now - self.last_line >= LINE_EVERY:
            self.last_line = now
            left = (now - self.began) / max(1, done) * (total - done)
            log.info("%s %d of %d  about %.0f s left", what, done, total, left)
        if done >= total:
            self.progress.remove_task(self.evaluating)
            self.evaluating = None
