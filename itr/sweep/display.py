"""Progress of a sweep: a bar on a terminal, one line per event everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from itr.sweep.seed_table import DONE, FAILED, PRUNED, RUNNING, JobOutcome
from itr.terminal import OutputConsole


class SweepDisplay:
    """Prints what happens to the jobs of a sweep. A context manager."""

    def __init__(self, console: OutputConsole):
        self.console = console
        self.total = self.completed = 0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task("sweep", total=None, counts="")

    def __enter__(self) -> SweepDisplay:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def print(self, text: str, style: str | None = None) -> None:
        """One line, above the bar."""
        self.console.print(text, style=style, soft_wrap=True)

    def begin(self, outcomes: Sequence[JobOutcome], total: int) -> None:
        """Report how many of ``total`` jobs are finished before the first one starts."""
        self.total = total
        self.update(outcomes)
        if self.completed:
            self.print(f"{self.completed} of {total} jobs are finished already")

    def event(
        self, word: str, outcome: JobOutcome, details: str = "", style: str | None = None
    ) -> None:
        """One line about a job."""
        self.print(f"{word:6s} {outcome.job.label}  {details}".rstrip(), style)

    def update(self, outcomes: Iterable[JobOutcome]) -> None:
        """Bring the bar up to date."""
        states = [outcome.state for outcome in outcomes]
        failed = states.count(FAILED)
        self.completed = states.count(DONE) + states.count(PRUNED) + failed
        counts = f"{states.count(RUNNING)} running" + (f", {failed} failed" if failed else "")
        self.progress.update(self.bar, total=self.total, completed=self.completed, counts=counts)


def duration(seconds: float) -> str:
    """``95`` as ``1 min 35 s``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join([f"{number} {unit}" for number, unit in units if number][:2]) or "0 s"
