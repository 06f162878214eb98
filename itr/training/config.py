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
from itr.models.base import RetrievalModel
from itr.models.build import build_slots, check_weights, model_class, model_config
from itr.results.trackers.config import TrackerConfig
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
class TrainerConfig:
    """Lengths are in optimiser updates unless they say epochs."""

    epochs: int = 30
    max_steps: int | None = None  # updates; the schedule is computed for it
    validate_every: int | None = None  # updates; None: at the end of every epoch
    checkpoint_every: int | None = None  # updates; None: after every validation
    checkpoint_minutes: float | None = 15.0  # and when the last one is as old; None: not
    log_every: int = 20
    length_bucket_batches: int = 0  # 0: off
    skip_nonfinite: int | None = None  # batches that may be left out; None: the first one stops
    growth_interval: int = 2000  # fp16: updates without overflow until the loss scale doubles


@dataclass
class RuntimeConfig:
    """What a machine has; it changes no number but by rounding, except ``cache_on_device=fp16`` and
    ``sync_batchnorm=false``, which make another run."""

    num_workers: int | str = "auto"  # threads that put batches together ahead of time
    cache_on_device: str | None = None  # fp16 or fp32: the training regions are kept on the device
    threads: int | None = None  # CPU threads of torch; None: torch's own choice
    eval_batch_size: int = 128
    deterministic: bool = False
    sync_batchnorm: bool = True  # batch statistics are those of all ranks; false: each its own
    collective_timeout: float = 1800.0  # seconds that a rank waits for the others
    activation_checkpointing: bool = False  # towers: less memory, one more forward pass
    compile: bool = False  # towers, by torch.compile
    estimate: bool = True  # count a step's operations and memory at start-up (a second or two)


@dataclass
class TaskConfig:
    """What is trained: ``retrieval`` (image-caption pairs whose images may repeat) or, by models
    that have such a stage, ``pretrain`` (pairs from the web; a model may add its own terms)."""

    name: str = "retrieval"


@dataclass
class RecipeLossConfig:
    """What a recipe sets of its method's own loss, which reads it from here (``conf/loss``):
    another loss has other options. None: the paper's."""

    mu: float | None = None  # of USER's UTO


@dataclass
class RecipeConfig:
    """Which published recipe was picked (None: the model's own defaults), where it is from, and
    what another machine or a missing file changes of its authors' runs; a run says where."""

    name: str | None = None
    source: str = ""
    precision: str | None = None  # in which they trained
    pairs_per_device: int | None = None  # on each of their devices, where these alone share a loss
    init: str | None = None  # the weights that they start from, as model.init takes them
    loss: RecipeLossConfig = field(default_factory=RecipeLossConfig)


@dataclass
class TrainConfig:
    """The keys of ``conf/train.yaml``."""

    data: DataConfig
    loss: LossConfig
    model: dict[str, Any]
    task: TaskConfig = field(default_factory=TaskConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    rerank: RerankConfig = field(default_factory=RerankConfig)
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    resume: str | None = None
    overwrite: bool = False
    batch_size: int = 128
    accumulate: int = 1
    grad_cache: int | None = None
    precision: str = "auto"
    select_on: str = "val"
    tie_break: str = "pessimistic"


def check_workers(workers: int | str) -> None:
    """Raise ConfigError unless ``runtime.num_workers`` is a number of threads or ``auto``."""
    if workers != "auto" and (isinstance(workers, str) or workers < 0):
        raise ConfigError(f"runtime.num_workers={workers}: expected auto, or 0 or more threads")


def check_config(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration as an object. Raises ConfigError naming every key that is wrong."""
    config: TrainConfig = check(values, TrainConfig, "")
    for key, found, known in (
        ("precision", config.precision, PRECISIONS),
        ("tie_break", config.tie_break, TIES),
        ("select_on", config.select_on, ("val", "test")),
        ("resume", config.resume, (None, "auto")),
    ):
        if found not in known:
            names = ", ".join(str(name) for name in known)
            raise ConfigError(f"{key}: '{found}' is unknown; expected one of {names}")
    check_workers(config.runtime.num_workers)
    if config.trainer.length_bucket_batches < 0:
        raise ConfigError(
            f"trainer.length_bucket_batches={config.trainer.length_bucket_batches}: expected 0 "
            "(off) or more"
        )
    for key, number in (
        ("batch_size", config.batch_size),
        ("accumulate", config.accumulate),
        ("trainer.epochs", config.trainer.epochs),
        ("trainer.log_every", config.trainer.log_every),
        ("trainer.max_steps", config.trainer.max_steps),
        ("trainer.validate_every", config.trainer.validate_every),
        ("trainer.checkpoint_every", config.trainer.checkpoint_every),
        ("trainer.skip_nonfinite", config.trainer.skip_nonfinite),
        ("trainer.growth_interval", config.trainer.growth_interval),
        ("runtime.eval_batch_size", config.runtime.eval_batch_size),
        ("runtime.collective_timeout", config.runtime.collective_timeout),
        ("devices", config.devices),
        ("nodes", config.nodes),
        ("grad_cache", config.grad_cache),
    ):
        if number is not None and number < 1:
            raise ConfigError(f"{key}: {number} must be at least 1")
    minutes = config.trainer.checkpoint_minutes
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"trainer.checkpoint_minutes={minutes:g}: expected more than 0, or null")
    world = parallel.planned_world_size(config.devices, config.nodes)
    if config.batch_size % world:
        lower = config.batch_size // world * world
        raise ConfigError(
            f"batch_size={config.batch_size}: the pairs that share one loss cannot be shared evenly"
            f" by {world} devices; type batch_size={lower or world} or {lower + world}"
        )
    check_optim(config.optim)
    model = model_config(config.model)
    cls = model_class(config.model)
    if config.task.name not in cls.tasks:
        raise ConfigError(
            f"task={config.task.name}: {cls.__name__} has no such stage; expected one of "
            f"{', '.join(cls.tasks)}"
        )
    if config.grad_cache is not None and not cls.cacheable():
        raise ConfigError(
            f"grad_cache={config.grad_cache}: {cls.__name__} cannot be trained on cached "
            "gradients, since its batch normalisation sees the whole batch; type grad_cache=null "
            "and, for less memory, runtime.activation_checkpointing=true"
        )
    reranks = cls.rerank is not RetrievalModel.rerank
    if config.rerank.enabled or (reranks and config.rerank.enabled is None):
        check_rerank(config.rerank, reranks, cls.__name__)
    build_slots(config.loss.__dict__, cls, model)
    check_weights(config.loss.weights, cls)
    return config
