"""One step of a golden case of ALBEF in real processes that gather from one another."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from itr.clock import Clock
from itr.official.albef import official_state
from tests.parity.albef_build import batch_of, draws_of, gradients, model_of
from tests.parity.harness import Case
from tests.parity.ranks import on_ranks

QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr")


def ddp_step(case: Case) -> None:
    """Losses of each rank, gradients averaged over them, and equal queues on all."""
    kept = on_ranks(_step, case, len(case["in.image"]))
    for name in ("loss_ita", "loss_itm"):
        case.check(f"out.{name}", torch.stack([rank[name] for rank in kept]))
    for rank in kept:
        for name in QUEUES:
            case.check(f"out.{name}", rank[name])
        for name in case.below("grad."):
            case.check(f"grad.{name}", rank["grad"][name])


def _step(case: Case, rank: int) -> dict[str, Any]:
    model = model_of(case, distill_warmup=False).train()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    given = [case[f"in.{name}"][rank] for name in ("image", "input_ids", "attention_mask", "idx")]
    clock = Clock()
    model.before_step(clock)
    terms = wrapped(batch_of(*given), clock, draws_of(case, f"rank{rank}."))
    sum(terms.losses.values(), torch.zeros(())).backward()
    model.after_step(clock)
    state = official_state(model)
    return {
        "loss_ita": terms.losses["itc"].detach(),
        "loss_itm": terms.losses["itm"].detach(),
        "grad": gradients(model),
        **{name: state[name] for name in QUEUES},
    }
