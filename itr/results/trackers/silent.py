"""The tracker of the ranks that do not write."""

from __future__ import annotations

from collections.abc import Mapping

from itr.results.trackers.tracker import Sink, Tracker


class SilentTracker(Tracker):
    """Takes everything and keeps nothing."""

    def __init__(self) -> None:
        self.others: dict[str, Sink] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def offset(self) -> int:
        """0."""
        return 0

    def rewind(self, offset: int) -> None:
        """Nothing."""

    def finish(self, exit_code: int = 0) -> None:
        """Nothing."""
