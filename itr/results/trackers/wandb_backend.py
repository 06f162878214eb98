"""A Weights & Biases run: when it starts, where it goes, how its metrics are summed up."""

from __future__ import annotations

import importlib
import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL.Image import Image

from itr.errors import ConfigError

log = logging.getLogger("itr")
NAMES = ("wandb", "none")
MODES = ("auto", "online", "offline", "disabled")
TRAIN, EVAL = "train", "eval"  # job types
STAGING = "WANDB_DATA_DIR"
INIT_TIMEOUT = 30.0  # seconds that a start may wait for the network


@dataclass
class TrackerConfig:
    """The keys of ``conf/tracker``. ``mode`` auto: online where a key is configured, else offline
    (the environment variable WANDB_MODE wins over auto)."""

    name: str = "wandb"
    mode: str = "auto"
    project: str = "itr"
    entity: str | None = None
    group: str | None = None  # None: <model>-<data>-<task>
    tags: list[str] = field(default_factory=list)  # beside those filled in
    notes: str | None = None

    def __post_init__(self) -> None:
        for key, value, known in (("name", self.name, NAMES), ("mode", self.mode, MODES)):
            if value not in known:
                raise ConfigError(
                    f"tracker.{key}: '{value}' is unknown; expected one of {', '.join(known)}"
                )


class WandbBackend:
    """A Weights & Biases run whose files lie in ``run_dir``/wandb; raises whatever wandb raises.

    A training run goes on under its old id; every evaluation is a run of its own.
    """

    def __init__(self, wandb: Any, run_dir: Path, mode: str, options: Mapping[str, Any]):
        self.wandb, self.folder = wandb, (run_dir / "wandb").absolute()
        kept_id = run_dir / "wandb" / "run-id"
        trains = options["job_type"] == TRAIN
        known = kept_id.read_text().strip() if trains and kept_id.is_file() else None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.defined: set[str] = set()
        self.run = wandb.init(
            dir=str(run_dir),
            mode=mode,
            id=known,
            resume="allow" if mode == "online" and known else None,
            settings=wandb.Settings(
                silent=True,
                console="off",  # the run directory has a log
                disable_git=True,  # versions.json has the commit
                save_code=False,
                init_timeout=INIT_TIMEOUT,
                login_timeout=1,  # never wait for someone to type a key
            ),
            **options,
        )
        if trains:
            kept_id.write_text(f"{self.run.id}\n")
        self.run.define_metric("epoch")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log at ``step``; each new key is told how to be plotted and summarised."""
        for key in values:
            if key not in self.defined:
                self.defined.add(key)
                self._define(key)
        self.run.log(dict(values), step=step)

    def _define(self, key: str) -> None:
        best = summary_of(key)
        axis = "epoch" if key.startswith("val/") else None
        if best or axis:
            self.run.define_metric(key, summary=best, step_metric=axis)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Put ``values`` into the run's summary."""
        self.run.summary.update(dict(values))

    def preempt(self) -> None:
        """Mark the run as preempted."""
        self.run.mark_preempting()

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log ``rows`` as a table. Its pictures wait for their upload in the run's own folder:
        wandb's default is the home directory, which may be gone when an offline run is synced."""
        before = os.environ.get(STAGING)
        os.environ.setdefault(STAGING, str(self.folder / "data"))
        try:
            shown = [[self._cell(cell) for cell in row] for row in rows]
            self.run.log({key: self.wandb.Table(columns=list(columns), data=shown)})
        finally:
            if before is None:
                del os.environ[STAGING]

    def _cell(self, cell: Any) -> Any:
        return self.wandb.Image(cell) if isinstance(cell, Image) else cell

    def finish(self, exit_code: int = 0) -> None:
        """Close the run."""
        self.run.finish(exit_code=exit_code)


def summary_of(key: str) -> str | None:
    """Which value of ``key`` sums up a run: ``max`` of recalls, ``min`` of ranks and losses."""
    leaf = key.rsplit("/", 1)[-1]
    if leaf == "rsum" or leaf.endswith(("_r1", "_r5", "_r10")):
        return "max"
    if leaf.endswith(("_medr", "_meanr", "loss")):
        return "min"
    return None


def start_wandb(
    config: TrackerConfig, run_dir: Path, values: Mapping[str, Any], job_type: str = TRAIN
) -> WandbBackend | None:
    """A run of Weights & Biases, or None if it is switched off or cannot start (a warning says so).

    Online that fails becomes offline. Raises ConfigError for ``mode=online`` without a key.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        log.warning("wandb is not installed: type pip install wandb, or tracker=none")
        return None
    mode = pick_mode(config.mode, wandb)
    for attempt in {"disabled": [], "online": ["online", "offline"]}.get(mode, [mode]):
        try:
            return _start(wandb, attempt, config, run_dir, values, job_type)
        except Exception as error:  # whatever it is, it is no reason not to train
            reason = str(error).strip().split("\n")[0]
            log.warning("Weights & Biases did not start %s (%s)", attempt, reason)
    return None


def _start(
    wandb: Any,
    mode: str,
    config: TrackerConfig,
    run_dir: Path,
    values: Mapping[str, Any],
    job_type: str,
) -> WandbBackend:
    sink = WandbBackend(
        wandb,
        run_dir,
        mode,
        {
            **describe(config, values),
            "job_type": job_type,
            "name": run_dir.absolute().name,
            "config": dict(values),
        },
    )
    if mode == "online":
        log.info("Weights & Biases: %s", sink.run.url)
    else:
        folder = Path(sink.run.dir).parent
        log.info("Weights & Biases is offline; upload this run with\nwandb sync %s", folder)
    return sink


def pick_mode(mode: str, wandb: Any) -> str:
    """``online``, ``offline`` or ``disabled``. Raises ConfigError for online without a key."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", mode)
    if mode in ("offline", "disabled"):
        return mode
    if has_key(wandb):
        return "online"
    if mode == "online":
        raise ConfigError(
            "tracker.mode=online: no Weights & Biases key is configured; type `wandb login` once "
            "(or set WANDB_API_KEY), or tracker.mode=offline"
        )
    return "offline"


def has_key(wandb: Any) -> bool:
    """Whether a key is in the environment, wandb's settings files or the netrc file."""
    try:
        settings = wandb.setup(wandb.Settings(silent=True)).settings
    except Exception as error:  # broken settings: offline will say more, or work
        log.warning("the settings of Weights & Biases cannot be read (%s)", error)
        return False
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return True
    hosts = [urlsplit(settings.base_url).netloc]
    if hosts[0].endswith((".wandb.ai", ".coreweave.com")):
        hosts.append("api.wandb.ai")  # the public server's first name, which old logins are kept by
    named = os.environ.get("NETRC")
    paths = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in paths:
        try:
            kept = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError):
            continue
        if any(kept.authenticators(host) for host in hosts):
            return True
    return False


def describe(config: TrackerConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Project, group and tags of a run with the configuration ``values``.

    Tags in the environment variable WANDB_TAGS (a sweep's name) are added to ours.
    """

    def name(group: str) -> str | None:
        node = values.get(group)
        return node.get("name") if isinstance(node, Mapping) else None

    parts = [name(group) for group in ("model", "data", "loss", "task")]
    model, data, _, task = parts
    tags = [*parts, "select_on=test" if values.get("select_on") == "test" else None, *config.tags]
    tags += [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",")]
    group = "-".join(part for part in (model, data, task) if part)
    return {
        "project": config.project,
        "entity": config.entity,
        "group": config.group or group or None,
        "tags": list(dict.fromkeys(tag for tag in tags if tag)),
        "notes": config.notes,
    }
