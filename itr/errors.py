"""Errors that a user can act on; the entry points print them without a traceback."""


class UserError(Exception):
    """Something the user can fix: the message names what, found, expected and what to type next."""


class ConfigError(UserError):
    """A configuration key, option or combination that cannot be used."""


class DataError(UserError):
    """A data file that is missing, misnamed or holds something unusable."""


class CheckpointError(UserError):
    """A checkpoint that is missing, truncated or belongs to another model."""


class TrainingError(UserError):
    """Training cannot go on: a loss that is not finite, no space left, ..."""


class RankLost(TrainingError):
    """Other ranks do not answer: what follows when one of them met an error of its own."""


class Stopped(Exception):
    """A run was asked to stop and has saved itself; ``preempted``: by a scheduler, not a person."""

    def __init__(self, message: str, preempted: bool):
        super().__init__(message, preempted)
        self.message, self.preempted = message, preempted
