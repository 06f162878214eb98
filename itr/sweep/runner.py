"""Runs the jobs of a sweep until each has results or has failed for good."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Any

from itr.jobs.entry import PREEMPTED
from itr.sweep import run_files
from itr.sweep.display import SweepDisplay, duration
from itr.sweep.grid import SweepJob
from itr.sweep.process_pool import GRACE, POLL, ProcessPool, Slot, lock_job
from itr.sweep.seed_table import DONE, FAILED, MISSING, PRUNED, RUNNING, JobOutcome, write_report
from itr.sweep.spec import Sweep
from itr.tasks.columns import columns_of


class Interrupt:
    """Counts SIGINT and SIGTERM: the first asks for an orderly end, the second for a kill."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


class Runner:
    """Runs jobs in the slots of ``pool``, retries failed ones and keeps the table up to date."""

    def __init__(
        self,
        sweep: Sweep,
        pool: ProcessPool,
        folder: Path,
        retries: int,
        display: SweepDisplay,
        searching: bool = False,
    ):
        self.sweep, self.pool, self.folder, self.retries = sweep, pool, folder, retries
        self.display, self.searching = display, searching
        self.outcomes: dict[Path, JobOutcome] = {}
        self._saving = threading.Lock()
        pool.folder.mkdir(parents=True, exist_ok=True)

    def add(self, job: SweepJob) -> JobOutcome:
        """Register ``job``; it is done at once if its run is finished."""
        outcome = self.outcomes[job.run] = JobOutcome(job)
        self._take_results(outcome)
        return outcome

    def run(self, outcome: JobOutcome, hopeless: Callable[[], bool] | None = None) -> None:
        """Run a job until it is done, failed for good or pruned, or until the sweep stops.

        Once ``hopeless()`` is true, the job is stopped and counts as pruned.
        """
        announced = False
        with self.pool.slot() as slot:
            while not self.pool.stopping.is_set():
                with lock_job(outcome.job.run) as lock:
                    if outcome.state not in (MISSING, RUNNING):
                        return
                    if lock is not None:
                        if not self._take_results(outcome):  # another runner was faster
                            self._attempt(outcome, slot, lock, hopeless)
                        self.save()
                        continue
                if not announced:
                    announced, outcome.state = True, RUNNING
                    self.display.event("wait", outcome, "already running, started elsewhere")
                time.sleep(POLL)
        if outcome.state == RUNNING:  # stopped while waiting for another runner
            outcome.state = MISSING

    def _attempt(
        self, outcome: JobOutcome, slot: Slot, lock: int, hopeless: Callable[[], bool] | None
    ) -> None:
        pruned = False

        def prune() -> bool:
            nonlocal pruned
            pruned = hopeless is not None and hopeless()
            return pruned

        outcome.state = RUNNING
        outcome.attempts += 1
        gpus = "" if slot is None else f"on GPU {slot} "
        attempt = f"(attempt {outcome.attempts})" if outcome.attempts > 1 else ""
        self.display.event("start", outcome, gpus + attempt)
        began = time.monotonic()
        code = self.pool.run(outcome.job, slot, lock, prune)
        outcome.seconds += time.monotonic() - began
        if self._take_results(outcome):
            main = columns_of(str(outcome.results.get("test/protocol")))
            value = outcome.results.get(f"test/{main.main}")
            number = "" if value is None else f"test {main.heading(main.main)} {value:.1f}  "
            self.display.event("done", outcome, number + duration(outcome.seconds), "green")
        elif pruned:
            outcome.state = PRUNED
            self.display.event("pruned", outcome)
        elif code is None or self.pool.stopping.is_set():
            outcome.state = MISSING
        elif code == PREEMPTED:  # stopped from outside; not an attempt that failed
            outcome.state = MISSING
            outcome.attempts -= 1
        else:
            self._fail(outcome, code)

    def _fail(self, outcome: JobOutcome, code: int) -> None:
        log = self.pool.log_path(outcome.job)
        outcome.reason = run_files.failure_reason(log, code)
        again = outcome.attempts <= self.retries
        outcome.state = MISSING if again else FAILED
        word, style = ("retry", "yellow") if again else ("failed", "red")
        self.display.event(word, outcome, f"{outcome.reason}  [{log}]", style)

    def _take_results(self, outcome: JobOutcome) -> bool:
        """Mark a job as done if its run has results."""
        results = run_files.results_of(outcome.job.run)
        if results is None:
            return False
        outcome.state, outcome.results, outcome.reason = DONE, results, ""
        return True

    def save(self) -> None:
        """Write the tables."""
        with self._saving:
            write_report(self.folder, self.sweep, list(self.outcomes.values()), self.searching)


def run_grid(runner: Runner, jobs: Sequence[SweepJob]) -> bool:
    """Run every job that is not finished; True if an interrupt ended the sweep early."""
    outcomes = [runner.add(job) for job in jobs]
    runner.display.begin(outcomes, len(outcomes))
    with ThreadPoolExecutor(runner.pool.size) as threads:
        work = [threads.submit(runner.run, o) for o in outcomes if o.state != DONE]
        interrupted = wait_for_work(runner, work)
    runner.save()
    return interrupted


def wait_for_work(runner: Runner, work: Sequence[Future[None]]) -> bool:
    """Wait for the threads in ``work``; on an interrupt, or if one of them raises, stop the jobs.

    Returns True after an interrupt. Raises what a thread raised.
    """
    deadline, killed = None, False
    with Interrupt() as interrupt, runner.display:
        while wait(work, POLL).not_done:
            runner.display.update(list(runner.outcomes.values()))
            failed = any(future.done() and future.exception() for future in work)
            if deadline is None and (interrupt.count or failed):
                deadline = time.monotonic() + GRACE
                stopped = runner.pool.stop()
                runner.display.print(
                    f"stopping: {stopped} jobs save and end (interrupt again to kill them)"
                )
            elif deadline is not None and not killed:
                killed = interrupt.count > 1 or time.monotonic() > deadline
                if killed:
                    runner.pool.stop(kill=True)
    for future in work:
        future.result()
    return interrupt.count > 0
