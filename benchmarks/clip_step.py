"""Our training step of a CLIP beside open_clip's own: one tower, one batch, in turn.

python -m benchmarks.clip_step [PAIRS] [REPEATS]
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import open_clip
import torch
from torch import nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.instantiate import check
from itr.losses.infonce import InfoNCE
from itr.models.clip import CLIP
from itr.training.config import OptimConfig
from itr.training.optim import build_optimizer
from itr.training.step import Step
from itr.view import Facts

TOWER = "ViT-B-32/laion2b_s34b_b79k"  # its architecture, with random weights
LR, DECAY = 1e-4, 0.2


def ours(model: CLIP, batch: Batch) -> Callable[[], float]:
    """The trainer's micro-batch and update."""
    step = Step(model, torch.device("cpu"), None, torch.amp.GradScaler("cpu", enabled=False))
    optimizer = build_optimizer(model, OptimConfig(lr=LR, weight_decay=DECAY))
    clock, draws = Clock(batches_per_epoch=100), Draws()
    step.set_requires_grad(clock)

    def run() -> float:
        model.before_step(clock)
        total, _ = step.forward(batch, clock, draws)
        step.backward(total, 1)
        model.after_step(clock)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total.detach())

    return run


def theirs(tower: nn.Module, batch: Batch) -> Callable[[], float]:
    """As open_clip_train: its loss, its parameter groups, its clamp."""
    loss, named = open_clip.ClipLoss(), list(tower.named_parameters())

    def undecayed(name: str, value: torch.Tensor) -> bool:
        return value.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    groups = [
        {"params": [p for n, p in named if undecayed(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not undecayed(n, p)], "weight_decay": DECAY},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR)

    def run() -> float:
        optimizer.zero_grad()
        total = loss(*tower(batch.pixels, batch.tokens))
        total.backward()
        optimizer.step()
        with torch.no_grad():
            tower.logit_scale.clamp_(0, 4.6052)
        return float(total.detach())

    return run


def main(pairs: int, repeats: int) -> None:
    """Time both, and print seconds of CPU and their ratio."""
    torch.manual_seed(0)
    node = {"tower": TOWER, "pretrained": False}
    config = check(node, CLIP.Config, "model")
    slots = nn.ModuleDict({"itc": InfoNCE()})
    model = CLIP(config, slots, {"itc": 1.0}, Facts(49408)).train()
    tower = copy.deepcopy(model.tower).train()
    tokens = torch.randint(1, 49000, (pairs, 77))
    tokens[:, 20:] = 0
    tokens[:, 19] = 49407
    batch = Batch(
        image_id=torch.arange(pairs),
        pixels=torch.randn(pairs, 3, 224, 224),
        tokens=tokens,
        positive_pairs=pairs,
    )
    sides = {"ours": ours(model, batch), "open_clip": theirs(tower, batch)}
    losses = {name: run() for name, run in sides.items()}
    print(f"first losses: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats):
        for name in sorted(sides, reverse=bool(number % 2)):
            start = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - start)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["open_clip"], strict=True)]
    print({name: [round(value, 2) for value in values] for name, values in seconds.items()})
    print(
        f"{TOWER}, {pairs} pairs, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"open_clip {open_clip.__version__}: ours {middle['ours']:.2f} s, open_clip "
        f"{middle['open_clip']:.2f} s, ratio {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    numbers = [int(value) for value in sys.argv[1:3]]
    main(*(numbers + [16, 8][len(numbers) :]))
