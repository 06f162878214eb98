"""Options of the trackers: a node for each one that is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from itr.options import configured, option

MODES = ("auto", "online", "offline", "disabled")


@dataclass
@configured("tracker/wandb.yaml", "tracker.wandb")
class WandbConfig:
    """``tracker=wandb``.

    ``mode=auto`` is what wandb's own settings and environment say (``wandb offline``, ``wandb
    disabled``, WANDB_MODE), otherwise online if a key is configured, else offline. ``project`` and
    ``entity`` take precedence over those settings if they are given.
    """

    mode: str = option(choices=MODES)
    project: str | None = option()
    entity: str | None = option()
    group: str | None = option()
    tags: list[str] = option()
    notes: str | None = option()


@dataclass
@configured("tracker/trackio.yaml", "tracker.trackio")
class TrackioConfig:
    """``tracker=trackio``."""

    project: str = option()
    group: str | None = option()
    tags: list[str] = option()


@dataclass
@configured("tracker/tensorboard.yaml", "tracker.tensorboard")
class TensorboardConfig:
    """``tracker=tensorboard``."""

    dir: str | None = option()


@dataclass
class TrackerConfig:
    """The chosen trackers; None: not chosen. ``tracker=none`` chooses none."""

    wandb: WandbConfig | None = None
    trackio: TrackioConfig | None = None
    tensorboard: TensorboardConfig | None = None
