"""Logs a run to Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib
import logging
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL.Image import Image

from itr.errors import ConfigError
from itr.files import parse_yaml
from itr.results.trackers.config import MODES, WandbConfig
from itr.results.trackers.description import TRAIN, group_of, tags_of

log = logging.getLogger("itr")
STAGING = "WANDB_DATA_DIR"  # environment variable: folder of files that wait for upload
SWEEP_PARAMETERS = "WANDB_SWEEP_PARAM_PATH"  # environment variable, set by an agent
FORMER_MODES = {"dryrun": "offline", "run": "online"}
PROJECT = "itr"  # where neither the configuration nor wandb names one
INIT_TIMEOUT = 30.0  # seconds to wait for the network


class WandbBackend:
    """A Weights & Biases run with its files in ``run_dir``/wandb; wandb's exceptions propagate.

    A resumed training run keeps its run id. Every evaluation is a separate run.
    """

    def __init__(self, wandb: Any, run_dir: Path, mode: str, options: Mapping[str, Any]):
        self.wandb, self.folder = wandb, (run_dir / "wandb").absolute()
        id_file = run_dir / "wandb" / "run-id"
        trains = options["job_type"] == TRAIN
        run_id = id_file.read_text().strip() if trains and id_file.is_file() else None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.defined: set[str] = set()
        with _sweep_parameters() as parameters:
            self.run = wandb.init(
                dir=str(run_dir),
                mode=mode,
                id=run_id,
                resume="allow" if mode == "online" and run_id else None,
                settings=wandb.Settings(
                    silent=True,
                    console="off",  # the run directory contains a log
                    disable_git=True,  # versions.json contains the commit
                    save_code=False,
                    init_timeout=INIT_TIMEOUT,
                    login_timeout=1,  # never prompt for a key
                ),
                **{**options, "config": {**parameters, **options["config"]}},
            )
        if trains:
            id_file.write_text(f"{self.run.id}\n")
        self.run.define_metric("epoch")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` at ``step``; defines the summary and x-axis of each new key."""
        for key in values:
            if key not in self.defined:
                self.defined.add(key)
                self._define(key)
        self.run.log(dict(values), step=step)

    def _define(self, key: str) -> None:
        best = summary_statistic(key)
        axis = "epoch" if key.startswith("val/") else None
        if best or axis:
            self.run.define_metric(key, summary=best, step_metric=axis)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Add ``values`` to the run's summary, after what was logged last: it would hide them."""
        self.run.log({}, commit=True)
        self.run.summary.update(dict(values))

    def preempt(self) -> None:
        """Mark the run as preempted."""
        self.run.mark_preempting()

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log ``rows`` as a table.

        Its images are staged in the run directory. wandb's default, the home directory, may not
        exist any more when an offline run is synced.
        """
        before = os.environ.get(STAGING)
        os.environ.setdefault(STAGING, str(self.folder / "data"))
        try:
            cells = [[self._cell(cell) for cell in row] for row in rows]
            self.run.log({key: self.wandb.Table(columns=list(columns), data=cells)})
        finally:
            if before is None:
                del os.environ[STAGING]

    def _cell(self, cell: Any) -> Any:
        return self.wandb.Image(cell) if isinstance(cell, Image) else cell

    def finish(self, exit_code: int = 0) -> None:
        """Close the run."""
        self.run.finish(exit_code=exit_code)


@contextlib.contextmanager
def _sweep_parameters() -> Iterator[dict[str, Any]]:
    """The parameters that a W&B agent chose for this run; hidden from wandb in the block.

    wandb would let ``model: hrem`` of the sweep file replace the node ``model`` of the
    configuration, by whose options runs are grouped and compared.
    """
    path = os.environ.pop(SWEEP_PARAMETERS, None)
    try:
        try:
            chosen = parse_yaml(Path(path).read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError) as error:
            log.warning("%s: the parameters of the sweep cannot be read (%s)", path, error)
            chosen = {}
        yield {k: v["value"] for k, v in chosen.items() if isinstance(v, dict) and "value" in v}
    finally:
        if path is not None:
            os.environ[SWEEP_PARAMETERS] = path


HIGHER_IS_BETTER = ("accuracy", "rsum", "consistency", "pointing")


def summary_statistic(key: str) -> str | None:
    """How ``key`` is summarized over a run: ``max`` for recalls, ``min`` for ranks and losses."""
    leaf = key.rsplit("/", 1)[-1]
    if leaf.startswith(HIGHER_IS_BETTER) or leaf.endswith(("_r1", "_r5", "_r10")):
        return "max"
    if leaf.endswith(("_medr", "_meanr", "loss")):
        return "min"
    return None


def start_wandb(
    config: WandbConfig, run_dir: Path, values: Mapping[str, Any], job_type: str = TRAIN
) -> WandbBackend | None:
    """Start a Weights & Biases run, or return None if it is disabled or fails (with a warning).

    If an online run cannot start, it becomes offline. Raises ConfigError for ``mode=online``
    without a key.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        log.warning("wandb is not installed: run pip install wandb, or pass tracker=none")
        return None
    mode = resolve_mode(config.mode, wandb)
    for attempt in {"disabled": [], "online": ["online", "offline"]}.get(mode, [mode]):
        try:
            return _start(wandb, attempt, config, run_dir, values, job_type)
        except Exception as error:  # training does not depend on W&B
            reason = str(error).strip().split("\n")[0]
            log.warning("Weights & Biases: no %s run could be started (%s)", attempt, reason)
    return None


def _start(
    wandb: Any,
    mode: str,
    config: WandbConfig,
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
        log.info("Weights & Biases is offline; to upload this run later:\nwandb sync %s", folder)
    return sink


def resolve_mode(mode: str, wandb: Any) -> str:
    """Resolve ``mode`` to ``online``, ``offline`` or ``disabled``.

    Raises ConfigError for ``online`` without a key.
    """
    if mode == "auto":
        mode = own_mode(wandb) or mode
    if mode in ("offline", "disabled"):
        return mode
    if has_key(wandb):
        return "online"
    if mode == "online":
        raise ConfigError(
            "tracker.wandb.mode=online: no Weights & Biases key is configured; run `wandb login` "
            "(or set WANDB_API_KEY), or pass tracker.wandb.mode=offline"
        )
    return "offline"


def own_mode(wandb: Any) -> str | None:
    """What wandb's environment and settings files say; None if they say nothing.

    ``wandb offline`` and ``wandb disabled`` write settings files; ``dryrun`` and ``run`` are former
    names of modes.
    """
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if not mode and os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes"):
        mode = "disabled"
    if not mode:
        settings = _settings(wandb)
        mode = str(getattr(settings, "mode", None) or "")
        mode = "" if mode == "online" else mode  # wandb's default
    mode = FORMER_MODES.get(mode, mode)
    return mode if mode in MODES and mode != "auto" else None


def own_project() -> str | None:
    """The project in wandb's environment and settings files."""
    try:
        settings = _settings(importlib.import_module("wandb"))
    except ImportError:
        settings = None
    return os.environ.get("WANDB_PROJECT") or getattr(settings, "project", None) or None


def _settings(wandb: Any) -> Any:
    """wandb's settings from its files and environment; None if they cannot be read."""
    try:
        return wandb.setup(wandb.Settings(silent=True, sweep_param_path="")).settings
    except Exception as error:  # an offline run may still work
        log.warning("the settings of Weights & Biases cannot be read (%s)", error)
        return None


def has_key(wandb: Any) -> bool:
    """Whether there is a key in the environment, in wandb's settings or in the netrc file."""
    settings = _settings(wandb)
    if settings is None:
        return False
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return True
    hosts = [urlsplit(settings.base_url).netloc]
    if hosts[0].endswith((".wandb.ai", ".coreweave.com")):
        hosts.append("api.wandb.ai")  # old logins use the server's former name
    netrc_path = os.environ.get("NETRC")
    paths = [Path(netrc_path)] if netrc_path else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in paths:
        try:
            logins = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError):
            continue
        if any(logins.authenticators(host) for host in hosts):
            return True
    return False


def describe(config: WandbConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Project, entity, group, tags and notes of a run with the configuration ``values``."""
    return {
        "project": config.project or own_project() or PROJECT,
        "entity": config.entity,
        "group": config.group or group_of(values),
        "tags": tags_of(values, config.tags),
        "notes": config.notes,
    }
