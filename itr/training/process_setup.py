"""What a process is told before it trains: threads, chance, its share of a batch."""

from __future__ import annotations

import os

import numpy as np
import torch

from itr import parallel
from itr.data.records import Split
from itr.models.base import RetrievalModel
from itr.nn.batch_norm import across_ranks
from itr.training.block_wrappers import compile_towers, recompute
from itr.training.config import TrainConfig

SEED_STRIDE = 1_000_003  # between two ranks' seeds
MOST = 16  # threads of `pick_workers`: each holds a batch of pictures


def share_threads(threads: int | None) -> None:
    """So many threads for this process; None: its share of the machine's."""
    if threads is None and parallel.local_world_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // parallel.local_world_size())
    if threads:
        torch.set_num_threads(threads)


def set_up_torch(config: TrainConfig) -> None:
    """Threads, determinism and the seed, which is the same on all ranks until the model stands."""
    share_threads(config.runtime.threads)
    torch.use_deterministic_algorithms(config.runtime.deterministic)
    torch.manual_seed(config.seed)


def pick_workers(asked: int | str, split: Split, device: torch.device) -> int:
    """Threads that put batches of ``split`` together ahead of time, on this rank.

    ``auto``: pictures for a GPU are decoded by this rank's share of the cores (at most `MOST`, and
    no more readers than tars); 0 else: a CPU's cores train, and regions are only copied.
    """
    if not isinstance(asked, str):
        return asked
    if device.type != "cuda" or split.regions is not None:
        return 0
    workers = min(len(os.sched_getaffinity(0)) // parallel.local_world_size(), MOST)
    if split.shard_ids is not None:
        workers = min(workers, len(np.unique(split.shard_ids)) // parallel.world_size())
    return workers


def prepare_model(config: TrainConfig, model: RetrievalModel) -> list[str]:
    """Make ``model`` one of several: batch statistics of all, dropout of its own; then what
    ``runtime`` asks for its towers. Lines for the log."""
    told = _share(config, model) if parallel.world_size() > 1 else []
    if config.runtime.activation_checkpointing:
        told.append(f"{recompute(model)} tower blocks are computed twice, to keep less")
    if config.runtime.compile:
        told.append(f"{compile_towers(model)} tower blocks are compiled at their first use")
    return told


def _share(config: TrainConfig, model: RetrievalModel) -> list[str]:
    world = parallel.world_size()
    norms = across_ranks(model) if config.runtime.sync_batchnorm else 0
    if parallel.rank():
        torch.manual_seed(config.seed + parallel.rank() * SEED_STRIDE)
    kind = "share one loss" if model.one_loss else "share queues; each has its own negatives"
    told = [
        f"{world} processes: {config.batch_size // world} pairs each of a batch of "
        f"{config.batch_size}, which {kind}"
    ]
    if norms:
        told.append(f"batch normalisation over all {world} processes (runtime.sync_batchnorm)")
    return told
