"""What a person sees of a sweep: a bar on a terminal, lines elsewhere, an estimate on both."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from itr.sweep import run_files
from itr.sweep.process_pool import Slot
from itr.sweep.seed_table import DONE, FAILED, PRUNED, RUNNING, Outcome

LINE_EVERY, LOOK_EVERY = 60.0, 2.0  # seconds between lines without a terminal; between looks


class Board:
    """Progress of a sweep of ``slots`` jobs at a time. A context manager."""

    def __init__(self, console: Console, slots: int, metric: str):
        self.console, self.slots, self.metric = console, slots, metric
        self.total = 0
        self.seconds: list[float] = []  # of the jobs that were trained by this runner
        self.began: dict[Path, float] = {}
        self.looked = self.lined = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task("sweep", total=None, rest="")

    def __enter__(self) -> Board:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """One line, above the bar."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def begin(self, outcomes: Sequence[Outcome], total: int | None = None) -> None:
        """Say how many of all jobs (or ``total``, where more will come) are done already."""
        self.total = total or len(outcomes)
        done = sum(outcome.state == DONE for outcome in outcomes)
        if done:
            self.say(f"{done} of {self.total} jobs are finished already")

    def started(self, outcome: Outcome, slot: Slot) -> None:
        """A job begins, or begins again."""
        self.began[outcome.job.run] = time.monotonic()
        where = f" on GPU {slot.gpus}" if slot.gpus else ""
        again = f" (attempt {outcome.attempts})" if outcome.attempts > 1 else ""
        self.say(f"start  {outcome.job.label}{where}{again}")

    def elsewhere(self, outcome: Outcome) -> None:
        """A job that an earlier runner left running, or that another one runs."""
        self.say(f"wait   {outcome.job.label}: runs already, started by another call")

    def done(self, outcome: Outcome) -> None:
        """A job has results."""
        self.seconds.append(outcome.seconds)
        rsum = outcome.results.get("test/rsum")
        number = "" if rsum is None else f"test rSum {rsum:.1f}  "
        self.say(f"done   {outcome.job.label}  {number}{spell(outcome.seconds)}", "green")

    def failed(self, outcome: Outcome, again: bool, log: Path) -> None:
        """A job ended without results."""
        what = "again " if again else "failed"
        self.say(
            f"{what} {outcome.job.label}: {outcome.reason}  [{log}]", "yellow" if again else "red"
        )

    def pruned(self, outcome: Outcome) -> None:
        """A trial was stopped before its end, being worse than others."""
        self.say(f"pruned {outcome.job.label}")

    def refresh(self, outcomes: Iterable[Outcome]) -> None:
        """Bring the bar, or every minute a line, up to date."""
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY:
            return
        self.looked = now
        states = list(outcomes)
        over = sum(outcome.state in (DONE, FAILED, PRUNED) for outcome in states)
        running = [outcome for outcome in states if outcome.state == RUNNING]
        rest = f"{len(running)} running{self._failures(states)}  {self._left(over, running, now)}"
        self.progress.update(self.bar, total=self.total, completed=over, rest=rest)
        if not self.console.is_terminal and now - self.lined >= LINE_EVERY:
            self.lined = now
            self.say(f"{over} of {self.total} jobs over, {rest}")
            for outcome in running:
                last = run_files.last_metric(outcome.job.run, self.metric)
                if last is not None:
                    step, value = last
                    self.say(f"  {outcome.job.label}: {self.metric} {value:.1f} at update {step}")

    def _failures(self, states: Sequence[Outcome]) -> str:
        failed = sum(outcome.state == FAILED for outcome in states)
        return f", {failed} failed" if failed else ""

    def _left(self, over: int, running: Sequence[Outcome], now: float) -> str:
        if not self.seconds:
            return ""
        mean = sum(self.seconds) / len(self.seconds)
        begun = sum(min(mean, now - self.began.get(outcome.job.run, now)) for outcome in running)
        work = (self.total - over) * mean - begun
        return f"about {spell(work / max(1, min(self.slots, self.total - over)))} left"


def spell(seconds: float) -> str:
    """``95`` as ``1 min 35 s``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(shown) or "0 s"
