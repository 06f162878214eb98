"""Errors that a user can act on; the entry points print them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


def first_of(items: Collection[object], limit: int = 3, separator: str = ", ") -> str:
    """The first ``limit`` items and the number of the others, for a message.

    >>> first_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    listed = separator.join(str(item) for item, _ in zip(items, range(limit), strict=False))
    rest = len(items) - limit
    return f"{listed} and {rest:,} more" if rest > 0 else listed


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A hint such as ``; nearest: epochs, max_steps`` (empty if no name is near)."""
    options = sorted(set(known))
    matches = difflib.get_close_matches(name, options, n=limit, cutoff=0.5)
    if not matches:
        leaf = name.rsplit(".", 1)[-1]
        leaves: dict[str, list[str]] = {}
        for option in options:
            leaves.setdefault(option.rsplit(".", 1)[-1], []).append(option)
        for close in difflib.get_close_matches(leaf, leaves, n=limit, cutoff=0.6):
            matches.extend(leaves[close])
    return f"; nearest: {', '.join(matches[:limit])}" if matches else ""


class UserError(Exception):
    """An error the user can fix. The message says what is wrong, what was expected, what to do."""


class ConfigError(UserError):
    """A configuration key, option or combination that cannot be used."""


class DataError(UserError):
    """A data file that is missing, misnamed or has unusable contents."""


class CheckpointError(UserError):
    """A checkpoint that is missing, truncated or belongs to another model."""


class TrainingError(UserError):
    """Training cannot continue: the loss is not finite, the disk is full, ..."""


class RankLost(TrainingError):
    """Other ranks do not respond, usually because one of them has failed."""


class Stopped(Exception):
    """The run was told to stop and has saved a checkpoint.

    ``preempted``: by a scheduler (it will be started again), not by a person.
    """

    def __init__(self, message: str, preempted: bool):
        super().__init__(message, preempted)
        self.message, self.preempted = message, preempted
