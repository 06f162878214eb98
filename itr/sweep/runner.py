"""Runs the jobs of a sweep to their end: skips, resumes, retries, reports."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from itr.jobs.entry import PREEMPTED
from itr.sweep import run_files
from itr.sweep.grid import Job
from itr.sweep.process_pool import Ended, Pool
from itr.sweep.progress import Board
from itr.sweep.seed_table import DONE, FAILED, MISSING, RUNNING, Outcome, write_report
from itr.sweep.spec import Sweep

POLL = 0.2  # seconds between two looks at the processes
GRACE = 300.0  # seconds that a job may take to save when it is told to stop


class Interrupt:
    """Counts SIGINT and SIGTERM: one asks for an orderly end, two for an end at once."""

    def __init__(self) -> None:
        self.count = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


class Runner:
    """Keeps the slots of a pool busy until every job is done or has failed for good."""

    def __init__(self, sweep: Sweep, pool: Pool, folder: Path, retries: int, board: Board):
        self.sweep, self.pool, self.folder, self.retries = sweep, pool, folder, retries
        self.board = board
        pool.folder.mkdir(parents=True, exist_ok=True)
        self.outcomes: dict[Path, Outcome] = {}
        self.waiting: deque[Job] = deque()

    def add(self, job: Job) -> Outcome:
        """Take ``job`` on: a finished one is done at once, any other waits for a slot."""
        outcome = self.outcomes[job.run] = Outcome(job)
        results = run_files.results_of(job.run)
        if results is None:
            self.waiting.append(job)
        else:
            outcome.state, outcome.results = DONE, results
        return outcome

    def fill(self) -> None:
        """Start waiting jobs in free slots."""
        while self.waiting and (slot := self.pool.free()) is not None:
            job = self.waiting.popleft()
            outcome = self.outcomes[job.run]
            results = run_files.results_of(job.run)
            if results is not None:  # another runner was faster
                outcome.state, outcome.results = DONE, results
                continue
            outcome.state = RUNNING
            if self.pool.start(job, slot):
                outcome.attempts += 1
                self.board.started(outcome, slot)
            else:
                self.board.elsewhere(outcome)

    def settle(self, ended: Ended, stopping: bool = False) -> Outcome:
        """Judge a job by what it left: done, to be tried again, or failed."""
        outcome = self.outcomes[ended.job.run]
        outcome.seconds += ended.seconds
        results = run_files.results_of(ended.job.run)
        if results is not None:
            outcome.state, outcome.results, outcome.reason = DONE, results, ""
            self.board.done(outcome)
        elif stopping:
            outcome.state = MISSING
        elif ended.code in (None, PREEMPTED):  # another runner's, or told to stop from outside
            outcome.state = MISSING
            outcome.attempts -= ended.code == PREEMPTED
            self.waiting.appendleft(ended.job)
        else:
            outcome.reason = run_files.reason_of(self.pool.log_of(ended.job), ended.code)
            again = outcome.attempts <= self.retries
            outcome.state = MISSING if again else FAILED
            if again:
                self.waiting.append(ended.job)
            self.board.failed(outcome, again, self.pool.log_of(ended.job))
        return outcome

    def save(self, searched: bool = False) -> None:
        """Write the tables as they stand."""
        write_report(self.folder, self.sweep, list(self.outcomes.values()), searched)

    def stop(self, interrupt: Interrupt) -> None:
        """Tell the jobs to save and end, wait for them; at once after a second interrupt."""
        others = self.pool.others()
        own = len(self.pool.running) - len(others)
        if own:
            self.board.say(
                f"stopping: {own} jobs save and end (interrupt again to end them at once)"
            )
        for job, process in others:
            known = f" (process {process})" if process is not None else ""
            self.board.say(f"{job.label} goes on by itself{known}")
        self.pool.tell_all(signal.SIGTERM)
        began, killed = time.monotonic(), False
        while len(self.pool.running) > len(self.pool.others()):
            if not killed and (interrupt.count > 1 or time.monotonic() - began > GRACE):
                killed = True
                self.pool.tell_all(signal.SIGKILL)
            for ended in self.pool.poll():
                self.settle(ended, stopping=True)
            time.sleep(POLL)


def run_grid(runner: Runner, jobs: Sequence[Job]) -> bool:
    """Run every job that is not finished; True if an interrupt ended it before its time."""
    for job in jobs:
        runner.add(job)
    runner.board.begin(list(runner.outcomes.values()))
    with Interrupt() as interrupt, runner.board:
        while (runner.waiting or runner.pool.running) and not interrupt.count:
            runner.fill()
            for ended in runner.pool.poll():
                runner.settle(ended)
                runner.save()
            runner.board.refresh(runner.outcomes.values())
            time.sleep(POLL)
        if interrupt.count:
            runner.stop(interrupt)
    runner.save()
    return bool(interrupt.count)
