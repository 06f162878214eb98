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

    ``mode=auto`` is what wandb's own settings and environment say (``wandb offline``, ``wandb
    disabled``, WANDB_MODE), otherwise online if a key is configured, else offline. ``project`` and
    ``entity`` take precedence over those settings if they are given.
    """

    name: str = option(choices=NAMES)
    mode: str = option(choices=MODES)
    project: str | None = option()
    entity: str | None = option()
    group: str | None = option()
    tags: list[str] = option()
    notes: str | None = option()
