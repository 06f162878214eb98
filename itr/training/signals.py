"""Being asked to stop: a note is taken, the step is finished, and the trainer acts on it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from itr.errors import Stopped
from itr.evaluation.encode import Progress

PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)  # a scheduler's; SIGINT is a person's
WATCHED = (*PREEMPTION, signal.SIGINT)


class StopRequest:
    """A context manager that decides what the signals in `WATCHED` do to a run.

    At first there is nothing to save: SIGTERM and SIGUSR1 raise Stopped at once, SIGINT
    KeyboardInterrupt. From `wait` on they are noted, for those who ask: ``number`` is that of the
    first signal, 0 if there was none; a second SIGINT raises KeyboardInterrupt at once. With
    ``forward``, which is told each signal, nothing is ever raised. Outside the main thread, where
    no handler can be set, nothing is noted.
    """

    def __init__(self, forward: Callable[[int], None] | None = None) -> None:
        self.number = 0
        self.forward = forward
        self.interrupts = 0
        self.waits = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def wait(self) -> None:
        """From now on signals are noted only. Raises Stopped for one that came before and that
        somebody swallowed."""
        self.waits = True
        self.check("stopped by a signal before the first update")

    def check(
        self, message: str = "stopped by a signal; the run is saved: go on with resume=auto"
    ) -> None:
        """Raises Stopped, with ``message``, if there was a signal."""
        if self.number:
            raise Stopped(message, self.number in PREEMPTION)

    def watching(self, progress: Progress) -> Progress:
        """``progress`` that raises Stopped if there was a signal."""

        def told(what: str, done: int, total: int) -> None:
            progress(what, done, total)
            self.check()

        return told

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self.interrupts += number == signal.SIGINT
        if self.forward is not None:
            self.forward(number)
        elif number == signal.SIGINT and (self.interrupts > 1 or not self.waits):
            raise KeyboardInterrupt
        elif not self.waits:
            raise Stopped("stopped by a signal before the first update", preempted=True)
