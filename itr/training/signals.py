"""Being asked to stop: a note is taken, the step is finished, and the trainer acts on it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)  # a scheduler's; SIGINT is a person's
WATCHED = (*PREEMPTION, signal.SIGINT)


class StopRequest:
    """A context manager that takes note of the signals in `WATCHED` instead of dying of them.

    ``number`` is that of the first signal, 0 if there was none. A second SIGINT raises
    KeyboardInterrupt at once. ``forward`` is told each signal. Outside the main thread, where no
    handler can be set, nothing is noted.
    """

    def __init__(self, forward: Callable[[int], None] | None = None) -> None:
        self.number = 0
        self.forward = forward
        self.interrupts = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if self.forward is not None:
            self.forward(number)
        if number == signal.SIGINT:
            self.interrupts += 1
            if self.interrupts > 1 and self.forward is None:
                raise KeyboardInterrupt
