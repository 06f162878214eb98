"""What goes wrong in a training step: batches that are not finite, memory, ranks that are gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from itr import parallel
from itr.clock import Clock
from itr.errors import TrainingError
from itr.training.config import TrainConfig

BEATS = "ITR_BEATS"  # environment: the folder in which the ranks of one machine say where they are


class Guard:
    """Leaves out batches whose loss is not finite, on all ranks alike, and undoes what their
    forward pass did to buffers (running means). It asks the device once a batch."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.skipped = 0
        self.changing: set[str] | None = None  # buffers that a forward pass writes to
        self.kept: dict[str, Tensor] = {}

    def remember(self) -> None:
        """Before a forward pass: keep the buffers that forward passes change (at first, all)."""
        buffers = dict(self.model.named_buffers())
        names = buffers if self.changing is None else self.changing
        self.kept = {name: buffers[name].clone() for name in names}

    def accepts(self, value: Tensor) -> bool:
        """Whether ``value`` is finite on every rank; else it is counted and the buffers go back."""
        bad = parallel.add_up((~torch.isfinite(value.detach())).float())
        buffers = dict(self.model.named_buffers())
        if bad.item() == 0:
            if self.changing is None:  # by value: batch normalisation counts no version
                same = {
                    name for name, kept in self.kept.items() if torch.equal(kept, buffers[name])
                }
                self.changing = set(buffers) - same
            return True
        self.skipped += 1
        for name, kept in self.kept.items():
            buffers[name].copy_(kept)
        return False


def beat(updates: int) -> None:
    """Say that this rank has come so far, for those who ask why it comes no farther."""
    folder = os.environ.get(BEATS)
    if folder:
        path = Path(folder) / f"at-{parallel.rank()}"
        new = path.with_suffix(".new")  # a process may be stopped in the middle of writing
        new.write_text(f"{os.getpid()} {updates}")
        os.replace(new, path)


def whereabouts(folder: str) -> dict[int, tuple[int, int]]:
    """Process id and last update of each rank of this machine that has said so."""
    found = {}
    for path in Path(folder).glob("at-*[0-9]"):
        words = path.read_text().split()
        if len(words) == 2:
            found[int(path.name[3:])] = int(words[0]), int(words[1])
    return found


def _state(process: int) -> str:
    """What the kernel says of a process."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return {"Z": "dead", "X": "dead", "T": "stopped", "D": "waiting for a disk"}.get(state, "alive")


def _others() -> str:
    told = whereabouts(os.environ[BEATS]) if os.environ.get(BEATS) else {}
    told.pop(parallel.rank(), None)
    lines = [
        f"rank {rank} (process {process}, {_state(process)}) last finished update {updates}"
        for rank, (process, updates) in sorted(told.items())
    ]
    return f" {'; '.join(lines)}." if lines else ""


@contextmanager
def explained(clock: Clock, config: TrainConfig) -> Iterator[None]:
    """What torch raises of memory and of other ranks, as a TrainingError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"update {clock.updates}: the GPU has no memory left "
            f"({str(error).splitlines()[0]}). Three ways out: {ways_out(config)}"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if parallel.world_size() == 1 or not _of_a_collective(error):
            raise
        raise TrainingError(
            f"rank {parallel.rank()}, after update {clock.updates}: the other ranks do not answer "
            f"({text.splitlines()[0][:300]}; runtime.collective_timeout="
            f"{config.runtime.collective_timeout:g} s).{_others()} Go on with resume=auto"
        ) from error


def _of_a_collective(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    words = ("gloo", "nccl", "timed out", "timeout", "connection closed", "connection reset")
    return any(word in str(error).lower() for word in words)


def ways_out(config: TrainConfig) -> str:
    """Three options that need less memory."""
    half = max(1, config.batch_size // 2)
    ways = [f"batch_size={half} accumulate={config.accumulate * 2} (changes the loss: fewer pairs)"]
    if not config.runtime.activation_checkpointing:
        ways.append("runtime.activation_checkpointing=true (the same numbers, a third slower)")
    if config.grad_cache is None:
        ways.append(f"grad_cache={max(1, half // 4)} (the same loss from small pieces)")
    if config.precision == "fp32":
        ways.append("precision=bf16")
    ways.append("more devices (devices=N)")
    return "; ".join(ways[:3])
