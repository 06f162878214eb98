"""Signal handling: handlers set a flag, and the trainer stops after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from itr.errors import Stopped
from itr.evaluation.encode import Progress
from itr.results.run_folder import STOPPED

PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)  # sent by schedulers; SIGINT comes from a person
WATCHED = (*PREEMPTION, signal.SIGINT)
BEFORE_TRAINING = f"{STOPPED} before the first update"


class StopRequest:
    """A context manager that handles the signals in `WATCHED`.

    Before `wait` there is nothing to save: SIGTERM and SIGUSR1 raise Stopped immediately, SIGINT
    raises KeyboardInterrupt. After `wait` the first signal is stored in ``number`` (0: none), and a
    second SIGINT raises KeyboardInterrupt. With ``forward``, which is called with every signal,
    nothing is raised. Outside the main thread no handler can be installed, so signals keep their
    previous handlers.
    """

    def __init__(self, forward: Callable[[int], None] | None = None) -> None:
        self.number = 0
        self.forward = forward
        self.interrupts = 0
        self.waiting = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._handle) for number in WATCHED}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def wait(self) -> None:
        """From now on only store signals. Raises Stopped if one came earlier and its exception was
        swallowed."""
        self.waiting = True
        self.check(BEFORE_TRAINING)

    def check(
        self,
        message: str = f"{STOPPED}; a checkpoint was saved: pass resume=auto to continue",
    ) -> None:
        """Raises Stopped with ``message`` if a signal was received."""
        if self.number:
            raise Stopped(message, self.number in PREEMPTION)

    def interrupting(self, progress: Progress) -> Progress:
        """A version of ``progress`` that raises Stopped once a signal was received."""

        def report(what: str, done: int, total: int) -> None:
            progress(what, done, total)
            self.check()

        return report

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self.interrupts += number == signal.SIGINT
        if self.forward is not None:
            self.forward(number)
        elif number == signal.SIGINT and (self.interrupts > 1 or not self.waiting):
            raise KeyboardInterrupt
        elif not self.waiting:
            raise Stopped(BEFORE_TRAINING, preempted=True)
