"""The training loop of a golden case in real processes that gather from one another."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from alip_build import batch_of, model_of
from alip_training import gradients, train
from harness import Case
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from itr.clock import Clock
from itr.draws import Draws


def run_ranks(case: Case) -> list[dict[str, Any]]:
    """What each rank of the case kept of its training, and its own gradient of the first step."""
    world = case.data["hyper"]["world_size"]
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (world, str(case.path), folder), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(rank: int, world: int, path: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    case = Case(Path(path))
    given = case.below(f"in.rank{rank}.")
    batches = [batch_of(*step) for step in zip(given["image"], given["text"], strict=True)]
    for batch in batches:
        assert batch.image_id is not None
        batch.image_id += rank * len(batch)
    own = model_of(case).train()
    torch.stack(list(own(batches[0], Clock(), Draws()).losses.values())).sum().backward()
    model = model_of(case)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    kept = train(model, wrapped, batches, case.data["hyper"])
    torch.save({**kept, "own": gradients(own)}, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
