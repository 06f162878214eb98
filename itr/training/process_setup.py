"""Per-process setup: threads, seeds, loader workers, and the model wrappers of a run."""

from __future__ import annotations

import os

import numpy as np
import torch

from itr import parallel
from itr.data.records import Split
from itr.models.base import Model
from itr.nn.batch_norm import sync_batch_norms
from itr.training.block_wrappers import checkpoint_activations, compile_blocks
from itr.training.config import TrainConfig

SEED_STRIDE = 1_000_003  # between the seeds of two ranks
MAX_AUTO_WORKERS = 16  # limit for runtime.num_workers=auto: each worker holds a batch of images
MAX_REGION_WORKERS = 4  # the same for region features, which are only copied


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads; None divides the machine's cores by its local processes."""
    if threads is None and parallel.local_world_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // parallel.local_world_size())
    if threads:
        torch.set_num_threads(threads)


def configure_torch(config: TrainConfig) -> None:
    """Set threads, determinism and the seed. All ranks share it until the model is built."""
    set_threads(config.runtime.threads)
    torch.use_deterministic_algorithms(config.runtime.deterministic)
    torch.manual_seed(config.seed)


def resolve_num_workers(setting: int | str, split: Split, device: torch.device) -> int:
    """Number of loader threads of this rank for ``split``.

    ``auto`` on a GPU: this rank's share of the cores, at most `MAX_AUTO_WORKERS`
    (`MAX_REGION_WORKERS` for region features, whose batches take longer to copy than a step to
    run) and at most the number of tars. On a CPU 0: the cores train.
    """
    if not isinstance(setting, str):
        return setting
    if device.type != "cuda":
        return 0
    most = MAX_AUTO_WORKERS if split.regions is None else MAX_REGION_WORKERS
    workers = min(len(os.sched_getaffinity(0)) // parallel.local_world_size(), most)
    if split.shard_ids is not None:
        workers = min(workers, len(np.unique(split.shard_ids)) // parallel.world_size())
    return workers


def prepare_model(config: TrainConfig, model: Model) -> list[str]:
    """Prepare ``model`` for several ranks, then wrap its encoder blocks as ``runtime`` says.

    Returns messages for the log.
    """
    messages = _prepare_ranks(config, model) if parallel.world_size() > 1 else []
    if config.runtime.activation_checkpointing:
        count = checkpoint_activations(model)
        messages.append(f"activation checkpointing: {count} encoder blocks are recomputed")
    if config.runtime.compile:
        count = compile_blocks(model)
        messages.append(f"torch.compile: {count} encoder blocks are compiled at first use")
    return messages


def _prepare_ranks(config: TrainConfig, model: Model) -> list[str]:
    world = parallel.world_size()
    norms = sync_batch_norms(model) if config.runtime.sync_batchnorm else 0
    if parallel.rank():
        torch.manual_seed(config.seed + parallel.rank() * SEED_STRIDE)
    sharing = (
        "one loss over all pairs"
        if model.shares_batch_loss
        else "one loss per process, shared queues"
    )
    messages = [
        f"{world} processes with {config.batch_size // world} pairs each "
        f"(batch_size={config.batch_size}), {sharing}"
    ]
    if norms:
        messages.append(f"batch normalization over all {world} processes (runtime.sync_batchnorm)")
    return messages
