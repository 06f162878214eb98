"""The typed configuration of ``conf/eval.yaml``, checked before any file is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from itr.errors import ConfigError
from itr.evaluation.hubness import HubnessConfig, check_hubness
from itr.options import configured, option
from itr.results.trackers.config import TrackerConfig
from itr.training.config import PRECISIONS, TIES, RuntimeConfig, check_workers


@dataclass
@configured("eval.yaml")
class EvalConfig:
    """The keys of ``conf/eval.yaml``."""

    data: dict[str, Any]
    model: dict[str, Any]
    task: dict[str, Any]
    loss: dict[str, Any]
    runtime: RuntimeConfig
    rerank: dict[str, Any]
    hubness: HubnessConfig = option()
    checkpoint: Any = option()
    ensemble: bool = option()
    scores: str | None = option()
    trained_on: str | None = option()
    embeddings: str | None = option()
    split: str = option()
    protocol: Any = option()
    out: str | None = option()
    device: str = option()
    devices: int = option(at_least=1)
    tracker: TrackerConfig = option()
    precision: str | None = option(choices=(None, *PRECISIONS))
    tie_break: str | None = option(choices=(None, *TIES))
    truncate_logits: bool = option()

    @property
    def checkpoints(self) -> list[str]:
        """The values of ``checkpoint`` as a list."""
        if self.checkpoint is None:
            return []
        several = isinstance(self.checkpoint, list | tuple)
        return [str(one) for one in self.checkpoint] if several else [str(self.checkpoint)]

    @property
    def tower(self) -> str | None:
        """The pre-trained tower that is evaluated zero-shot; None: a checkpoint or scores are."""
        if self.checkpoints or self.scores is not None:
            return None
        return self.model.get("tower")

    @property
    def sources(self) -> list[str]:
        """What is evaluated: `checkpoints`, or the `tower`."""
        return self.checkpoints or ([self.tower] if self.tower else [])

    @property
    def second(self) -> str | None:
        """The checkpoint that re-ranks the candidates of the evaluated one."""
        return self.rerank.get("checkpoint")

    @property
    def typed_rerank(self) -> dict[str, Any]:
        """Options of `RerankConfig` that replace those of a checkpoint."""
        options = {key: value for key, value in self.rerank.items() if key != "checkpoint"}
        if self.second is not None:
            options["enabled"] = True
        return {key: value for key, value in options.items() if value is not None}

    @property
    def protocols(self) -> list[str] | None:
        """The values of ``protocol`` as a list; None: those of the dataset."""
        if self.protocol is None:
            return None
        return [self.protocol] if isinstance(self.protocol, str) else list(self.protocol)


def keep_typed_options(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``values`` whose nodes ``model`` and ``task`` only hold a name, a class and options set by
    ``overrides``.

    Their other values are defaults of the configuration, which must not replace a checkpoint's.
    """
    typed = [override.lstrip("+").partition("=")[0].partition(".") for override in overrides]
    kept = {}
    for node in ("model", "task"):
        given, only = OmegaConf.create(values[node]), OmegaConf.create({})
        only.update({key: given[key] for key in ("name", "_target_") if key in given})
        for group, _, key in typed:
            if group == node and key:
                OmegaConf.update(only, key, OmegaConf.select(given, key))
        kept[node] = OmegaConf.to_container(only)
    return {**values, **kept}


def check_options(config: EvalConfig) -> None:
    """Raises ConfigError for unknown values and for options that exclude each other."""
    check_workers(config.runtime.num_workers)
    if config.task.get("name") == "pretrain":
        raise ConfigError(
            "task=pretrain: a pre-trained model is evaluated on retrieval; expected one of "
            "retrieval, zeroshot, or no task: the checkpoint's own"
        )
    _check_source(config)
    _check_second(config)
    if config.out and Path(config.out).exists() and not Path(config.out).is_dir():
        raise ConfigError(f"out={config.out}: is a file; pass the folder of the results, out=DIR")
    zeroshot, count = config.task.get("name") == "zeroshot", len(config.sources)
    if zeroshot and (count != 1 or config.embeddings or config.hubness.rows):
        raise ConfigError(
            "task=zeroshot: evaluates one checkpoint; leave out scores, ensemble, embeddings and "
            "hubness.rows"
        )
    if (zeroshot or config.scores) and config.devices > 1:
        raise ConfigError(
            f"devices={config.devices}: only retrieval with a checkpoint runs on several devices; "
            "pass devices=1"
        )
    if config.ensemble and config.embeddings:
        raise ConfigError(
            f"embeddings={config.embeddings}: a file holds the embeddings of one checkpoint; leave "
            "it out for an ensemble"
        )
    check_hubness(config.hubness)


def _check_source(config: EvalConfig) -> None:
    """Raises ConfigError unless exactly one thing is to be evaluated."""
    checkpoints = config.checkpoints
    if not checkpoints and config.scores is None and config.tower is None:
        raise ConfigError(
            "checkpoint: nothing to evaluate; pass checkpoint=RUN_DIR, or scores=FILE.npz, or "
            "model=clip model.tower=NAME for a pre-trained tower"
        )
    if checkpoints and config.scores is not None:
        raise ConfigError("checkpoint and scores exclude each other; pass one of them")
    if len(checkpoints) > 1 and not config.ensemble:
        raise ConfigError(
            f"checkpoint: {len(checkpoints)} checkpoints; pass ensemble=true to average their "
            "scores, or -m checkpoint=A,B to evaluate one after the other"
        )
    if config.ensemble and len(checkpoints) < 2:
        raise ConfigError(
            "ensemble=true: needs at least two checkpoints; pass 'checkpoint=[RUN_A,RUN_B]'"
        )


def _check_second(config: EvalConfig) -> None:
    """Raises ConfigError if a second checkpoint excludes what else is asked for."""
    if config.second is None:
        return
    if not isinstance(config.second, str):
        raise ConfigError(
            f"rerank.checkpoint={config.second}: expected one checkpoint, which re-ranks; pass "
            "rerank.checkpoint=RUN_DIR"
        )
    reasons = {
        "task=zeroshot": config.task.get("name") == "zeroshot",
        "scores": config.scores is not None,
        "ensemble=true": config.ensemble,
        "rerank.enabled=false": config.rerank.get("enabled") is False,
    }
    if others := [name for name, given in reasons.items() if given]:
        raise ConfigError(
            f"rerank.checkpoint={config.second}: re-ranks the candidates of one checkpoint or "
            f"tower, and excludes {others[0]}; leave one of them out"
        )
