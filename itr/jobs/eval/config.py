"""The keys of ``conf/eval.yaml``, typed; checked before any file is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from itr.errors import ConfigError
from itr.evaluation.hubness import HubnessConfig, check_hubness
from itr.results.trackers.wandb_backend import TrackerConfig
from itr.training.config import PRECISIONS, TIES, RuntimeConfig, TaskConfig, check_workers


@dataclass
class EvalConfig:
    """The keys of ``conf/eval.yaml``."""

    data: dict[str, Any]
    model: dict[str, Any]
    loss: dict[str, Any]
    runtime: RuntimeConfig
    rerank: dict[str, Any]
    task: TaskConfig = field(default_factory=TaskConfig)
    hubness: HubnessConfig = field(default_factory=HubnessConfig)
    checkpoint: Any = None
    ensemble: bool = False
    scores: str | None = None
    trained_on: str | None = None
    embeddings: str | None = None
    split: str = "test"
    protocol: Any = None
    out: str | None = None
    device: str = "auto"
    devices: int = 1
    tracker: TrackerConfig = field(default_factory=lambda: TrackerConfig(name="none"))
    precision: str | None = None
    tie_break: str | None = None
    truncate_logits: bool = False

    @property
    def checkpoints(self) -> list[str]:
        """Those that are named."""
        if self.checkpoint is None:
            return []
        several = isinstance(self.checkpoint, list | tuple)
        return [str(one) for one in self.checkpoint] if several else [str(self.checkpoint)]

    @property
    def protocols(self) -> list[str] | None:
        """Those that are asked for; None: those of the data set."""
        if self.protocol is None:
            return None
        return [self.protocol] if isinstance(self.protocol, str) else list(self.protocol)


def keep_typed_options(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``values`` with a model node that holds its name, its class and the options that
    ``overrides`` set. Other values are defaults of the configuration, not of the checkpoint."""
    whole, typed = OmegaConf.create(values["model"]), OmegaConf.create({})
    typed.update({key: whole[key] for key in ("name", "_target_") if key in whole})
    for override in overrides:
        group, _, key = override.lstrip("+").partition("=")[0].partition(".")
        if group == "model" and key:
            OmegaConf.update(typed, key, OmegaConf.select(whole, key))
    return {**values, "model": OmegaConf.to_container(typed)}


def check_options(config: EvalConfig) -> None:
    """Raises ConfigError for values and combinations that make no sense."""
    check_workers(config.runtime.num_workers)
    for key, value, known in (
        ("precision", config.precision, PRECISIONS),
        ("tie_break", config.tie_break, TIES),
        ("task", config.task.name, ("retrieval", "zeroshot")),
    ):
        if value is not None and value not in known:
            raise ConfigError(f"{key}: '{value}' is unknown; expected one of {', '.join(known)}")
    named = len(config.checkpoints)
    if bool(named) == (config.scores is not None):
        raise ConfigError(
            "nothing to evaluate: type checkpoint=RUN_DIR, or scores=FILE.npz"
            if not named
            else "checkpoint and scores: give one of them"
        )
    if config.ensemble != (named > 1):
        raise ConfigError(
            f"checkpoint: {named} are named; for the mean of their scores type ensemble=true, for "
            "one after the other -m checkpoint=A,B"
            if named > 1
            else "ensemble=true: type 'checkpoint=[RUN_A,RUN_B]'"
        )
    if config.task.name == "zeroshot" and (named != 1 or config.embeddings or config.hubness.rows):
        raise ConfigError("task=zeroshot: of one checkpoint, without embeddings and hubness.rows")
    if config.devices < 1:
        raise ConfigError(f"devices={config.devices}: expected at least 1")
    if (config.task.name == "zeroshot" or config.scores) and config.devices > 1:
        raise ConfigError("devices: several share the retrieval of a checkpoint, nothing else")
    if config.ensemble and config.embeddings:
        raise ConfigError("embeddings: one file holds those of one checkpoint, not of an ensemble")
    check_hubness(config.hubness)
