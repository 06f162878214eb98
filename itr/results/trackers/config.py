"""Options of the tracker."""

from __future__ import annotations

from dataclasses import dataclass

from itr.options import configured, option

NAMES = ("wandb", "none")
MODES = ("auto", "online", "offline", "disabled")


@dataclass
@configured("tracker/wandb.yaml", "tracker")
class TrackerConfig:
    """The keys of ``conf/tracker``.

    ``mode=auto`` means online if a key is configured, else offline. The environment variable
    WANDB_MODE takes precedence over ``auto``.
    """

    name: str = option(choices=NAMES)
    mode: str = option(choices=MODES)
    project: str = option()
    entity: str | None = option()
    group: str | None = option()
    tags: list[str] = option()
    notes: str | None = option()
