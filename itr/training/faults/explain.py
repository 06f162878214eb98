"""Turns torch's out-of-memory and communication errors into errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from itr import parallel
from itr.clock import Clock
from itr.errors import RankLost, TrainingError
from itr.models.build import model_class
from itr.training.config import TrainConfig
from itr.training.faults.heartbeat import Heartbeat

COLLECTIVE_WORDS = (
    "gloo",
    "nccl",
    "timed out",
    "timeout",
    "connection closed",
    "connection reset",
)


@contextmanager
def explain_errors(
    clock: Clock, config: TrainConfig, heartbeat: Heartbeat, evaluating: bool = False
) -> Iterator[None]:
    """Raise TrainingError with suggestions where torch runs out of memory or loses a rank.

    ``evaluating``: the body evaluates a split, so the suggestions are those for an evaluation.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        phase = "the evaluation after update" if evaluating else "update"
        hints = evaluation_memory_hints(config) if evaluating else training_memory_hints(config)
        raise TrainingError(
            f"{phase} {clock.updates}: out of GPU memory ({str(error).splitlines()[0]}). To use "
            f"less: {hints}"
        ) from error
    except RuntimeError as error:
        if parallel.world_size() == 1 or not _from_collective(error):
            raise
        raise RankLost(
            f"rank {parallel.rank()}, after update {clock.updates}: the other ranks do not respond "
            f"({str(error).splitlines()[0][:300]}; runtime.collective_timeout="
            f"{config.runtime.collective_timeout:g} s).{heartbeat.describe_peers()} Pass "
            "resume=auto to continue from the last checkpoint"
        ) from error


def _from_collective(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(word in str(error).lower() for word in COLLECTIVE_WORDS)


def training_memory_hints(config: TrainConfig) -> str:
    """At most three options that reduce the memory of a training step."""
    half = max(1, config.batch_size // 2)
    hints = [
        f"batch_size={half} accumulate={config.accumulate * 2} (changes the loss: fewer pairs)"
    ]
    if not config.runtime.activation_checkpointing:
        hints.append("runtime.activation_checkpointing=true (same numbers, about a third slower)")
    if config.grad_cache is None and model_class(config.model).cacheable():
        hints.append(f"grad_cache={max(1, half // 4)} (same loss, computed in chunks)")
    if config.precision == "fp32":
        hints.append("precision=bf16")
    hints.append("more devices (devices=N)")
    return "; ".join(hints[:3])


def evaluation_memory_hints(config: TrainConfig) -> str:
    """Options that reduce the memory of an evaluation without changing its numbers."""
    hints = [f"runtime.eval_batch_size={max(1, config.runtime.eval_batch_size // 4)}"]
    has_second_stage = model_class(config.model).has_rerank()
    if has_second_stage and config.rerank.enabled is not False:
        hints.append(f"rerank.batch_size={max(1, config.rerank.batch_size // 4)}")
    return " ".join(hints) + "; then pass resume=auto to continue"
