"""The whole configuration, typed; checked once, before any data is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from itr import parallel
from itr.data.layouts.registry import DataConfig
from itr.errors import ConfigError
from itr.evaluation.rerank import RerankConfig, check_rerank
from itr.instantiate import check
from itr.models.build import (
    build_slots,
    check_weights,
    model_class,
    model_config,
    with_task_loss,
)
from itr.options import configured, option
from itr.results.trackers.config import TrackerConfig
from itr.tasks.known_tasks import build_task
from itr.training.optim import OptimConfig, check_optim

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
TIES = ("pessimistic", "optimistic", "mean")


@dataclass
class LossConfig:
    """What is in a model's slots (``default`` fills the rest) and how much each term counts."""

    name: str
    slots: dict[str, Any] = field(default_factory=dict)
    default: dict[str, Any] | None = None
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
@configured("train.yaml", "trainer")
class TrainerConfig:
    """Lengths are in optimiser updates unless they say epochs."""

    epochs: int = option(at_least=1)
    max_steps: int | None = option(at_least=1)
    validate_every: int | None = option(at_least=1)
    checkpoint_every: int | None = option(at_least=1)
    checkpoint_minutes: float | None = option(above=0)
    log_every: int = option(at_least=1)
    length_bucket_batches: int = option(at_least=0)
    skip_nonfinite: int | None = option(at_least=1)
    freeze: list[str] = option()
    thaw_at: int | None = option(at_least=1)
    ema: float | None = option(above=0, below=1)
    growth_interval: int = option(at_least=1)


@dataclass
@configured("runtime/default.yaml", "runtime")
class RuntimeConfig:
    """What a machine has; it changes no number but by rounding, except ``cache_on_device=fp16`` and
    ``sync_batchnorm=false``, which make another run."""

    num_workers: int | str = option(at_least=0)
    cache_on_device: str | None = option(choices=(None, "fp16", "fp32"))
    threads: int | None = option(at_least=1)
    eval_batch_size: int = option(at_least=1)
    deterministic: bool = option()
    sync_batchnorm: bool = option()
    collective_timeout: float = option(at_least=1)
    activation_checkpointing: bool = option()
    compile: bool = option()
    estimate: bool = option()
    verify_checkpoints: bool = option()


@dataclass
class RecipeLossConfig:
    """What a recipe sets of its method's own loss, which reads it from here (``conf/loss``):
    another loss has other options. None: the paper's."""

    mu: float | None = None  # of USER's UTO


@dataclass
@configured("train.yaml", "recipe")
class RecipeConfig:
    """Which published recipe was picked (None: the model's own defaults), where it is from, and
    what another machine or a missing file changes of its authors' runs; a run says where."""

    name: str | None = option()
    source: str = option()
    precision: str | None = option()
    pairs_per_device: int | None = option()
    init: str | None = option()
    loss: RecipeLossConfig = option()


@dataclass
@configured("train.yaml")
class TrainConfig:
    """The keys of ``conf/train.yaml``."""

    data: DataConfig
    loss: LossConfig
    model: dict[str, Any]
    task: dict[str, Any]
    recipe: RecipeConfig = option()
    optim: OptimConfig = option()
    trainer: TrainerConfig = option()
    runtime: RuntimeConfig = option()
    tracker: TrackerConfig = option()
    rerank: RerankConfig = option()
    out: str | None = option()
    seed: int = option(at_least=0, below=2**63)
    device: str = option()
    devices: int = option(at_least=1)
    nodes: int = option(at_least=1)
    resume: str | None = option(choices=(None, "auto"))
    overwrite: bool = option()
    batch_size: int = option(at_least=1)
    accumulate: int = option(at_least=1)
    accumulate_rest: str = option(choices=("mean", "scaled"))
    grad_cache: int | None = option(at_least=1)
    precision: str = option(choices=PRECISIONS)
    select_on: str = option(choices=("val", "test"))
    tie_break: str = option(choices=TIES)


def check_workers(workers: int | str) -> None:
    """Raises ConfigError unless ``runtime.num_workers`` is a number of threads or ``auto``."""
    if workers != "auto" and (isinstance(workers, str) or workers < 0):
        raise ConfigError(f"runtime.num_workers={workers}: expected auto, or 0 or more threads")


def check_config(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration as an object. Raises ConfigError naming every key that is wrong."""
    config: TrainConfig = check(with_task_loss(values), TrainConfig, "")
    check_workers(config.runtime.num_workers)
    world = parallel.planned_world_size(config.devices, config.nodes)
    if config.batch_size % world:
        lower = config.batch_size // world * world
        raise ConfigError(
            f"batch_size={config.batch_size}: must be divisible by the number of devices "
            f"({world}); pass batch_size={lower or world} or batch_size={lower + world}"
        )
    check_optim(config.optim)
    model = model_config(config.model)
    cls = model_class(config.model)
    task = build_task(config.task).name
    if task not in cls.tasks:
        raise ConfigError(
            f"task={task}: {cls.__name__} does not support this task; expected one of "
            f"{', '.join(cls.tasks)}"
        )
    if config.grad_cache is not None and not cls.cacheable():
        raise ConfigError(
            f"grad_cache={config.grad_cache}: {cls.__name__} does not support gradient "
            "caching, because its batch normalization needs the whole batch; pass grad_cache=null "
            "and, to save memory, runtime.activation_checkpointing=true"
        )
    reranks = cls.has_rerank()
    if config.rerank.enabled or (reranks and config.rerank.enabled is None):
        check_rerank(config.rerank, reranks, cls.__name__)
    build_slots(config.loss.__dict__, cls, model)
    check_weights(config.loss.weights, cls)
    return config
