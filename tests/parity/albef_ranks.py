"""One step of a golden case of ALBEF in real processes that gather from one another."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from albef_build import batch_of, draws_of, gradients, model_of
from harness import Case
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from itr.clock import Clock
from itr.official.albef import official_state

QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr")


def ddp_step(case: Case) -> None:
    """Losses of each rank, gradients averaged over them, and equal queues on all."""
    world = len(case["in.image"])
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (world, str(case.path), folder), nprocs=world)
        kept: list[dict[str, Any]] = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)
        ]
    for name in ("loss_ita", "loss_itm"):
        case.check(f"out.{name}", torch.stack([rank[name] for rank in kept]))
    for rank in kept:
        for name in QUEUES:
            case.check(f"out.{name}", rank[name])
        for name in case.below("grad."):
            case.check(f"grad.{name}", rank["grad"][name])


def _rank(rank: int, world: int, path: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    case = Case(Path(path))
    model = model_of(case, alpha_warmup=False).train()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    given = [case[f"in.{name}"][rank] for name in ("image", "input_ids", "attention_mask", "idx")]
    clock = Clock()
    model.before_step(clock)
    terms = wrapped(batch_of(*given), clock, draws_of(case, f"rank{rank}."))
    sum(terms.losses.values(), torch.zeros(())).backward()
    model.after_step(clock)
    state = official_state(model)
    kept = {
        "loss_ita": terms.losses["itc"].detach(),
        "loss_itm": terms.losses["itm"].detach(),
        "grad": gradients(model),
        **{name: state[name] for name in QUEUES},
    }
    torch.save(kept, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
