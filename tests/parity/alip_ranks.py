"""The training loop of a golden case in real processes that gather from one another."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from itr.clock import Clock
from itr.draws import Draws
from tests.parity.alip_build import batch_of, model_of
from tests.parity.alip_training import gradients, train
from tests.parity.harness import Case
from tests.parity.ranks import on_ranks


def run_ranks(case: Case) -> list[dict[str, Any]]:
    """What each rank of the case kept of its training, and its own gradient of the first step."""
    return on_ranks(_train, case, case.data["hyper"]["world_size"])


def _train(case: Case, rank: int) -> dict[str, Any]:
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
    return {**kept, "own": gradients(own)}
