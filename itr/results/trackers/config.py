"""Options of the tracker."""

from __future__ import annotations

from dataclasses import dataclass, field

from itr.errors import ConfigError

NAMES = ("wandb", "none")
MODES = ("auto", "online", "offline", "disabled")


@dataclass
class TrackerConfig:
    """The keys of ``conf/tracker``.

    ``mode=auto`` means online if a key is configured, else offline. The environment variable
    WANDB_MODE takes precedence over ``auto``.
    """

    name: str = "wandb"
    mode: str = "auto"
    project: str = "itr"
    entity: str | None = None
    group: str | None = None  # None: <model>-<data>-<task>
    tags: list[str] = field(default_factory=list)  # in addition to model, data, loss and task
    notes: str | None = None

    def __post_init__(self) -> None:
        for key, value, known in (("name", self.name, NAMES), ("mode", self.mode, MODES)):
            if value not in known:
                raise ConfigError(
                    f"tracker.{key}: '{value}' is unknown; expected one of {', '.join(known)}"
                )
