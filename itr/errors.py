"""Errors that a user can act on; the entry points print them without a traceback."""

from __future__ import annotations

from collections.abc import Collection


def first_of(items: Collection[object], limit: int = 3, separator: str = ", ") -> str:
    """The first ``limit`` items and the number of the others, for a message.

    >>> first_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    listed = separator.join(str(item) for item, _ in zip(items, range(limit), strict=False))
    rest = len(items) - limit
    return f"{listed} and {rest:,} more" if rest > 0 else listed


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
