"""What goes wrong in a training step: batches that are not finite, memory, ranks that are gone."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from itr import parallel
from itr.clock import Clock
from itr.errors import RankLost, TrainingError
from itr.files import atomic_write
from itr.models.base import RetrievalModel
from itr.models.build import model_class
from itr.training.config import TrainConfig

BEATS = "ITR_BEATS"  # environment: our launcher's folder, in which ranks say where they are
RANKS = "ranks"  # of a run directory: the same under a launcher from outside
EVERY = 1.0  # seconds


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
        bad = parallel.all_reduce_sum((~torch.isfinite(value.detach())).float())
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


class Beats:
    """Where each rank of a run stands, for those who ask why one comes no farther.

    Each writes a file of its own: into the folder of our launcher, else into ``run``/ranks, and
    there once in `EVERY` seconds, since machines may share that disk.
    """

    def __init__(self, run: Path):
        own = os.environ.get(BEATS)
        self.folder = Path(own) if own else run / RANKS
        self.every = 0.0 if own else EVERY
        self.next = 0.0

    @property
    def path(self) -> Path:
        """The file of this rank."""
        return self.folder / f"at-{parallel.rank()}"

    def tell(self, updates: int) -> None:
        """Say that this rank has come so far. A disk that is full is no reason not to train."""
        now = time.monotonic()
        if parallel.world_size() == 1 or now < self.next:
            return
        self.next = now + self.every
        with contextlib.suppress(OSError), atomic_write(self.path, durable=False) as file:
            file.write(f"{os.getpid()} {updates} {platform.node()}".encode())

    def forget(self) -> None:
        """This rank is through; the last one takes the folder with it."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.folder.rmdir()

    def others(self) -> str:
        """A sentence about the other ranks; empty where none has said anything."""
        told = whereabouts(self.folder)
        told.pop(parallel.rank(), None)
        lines = [
            f"rank {rank} ({at}) last told of update {at.updates}" for rank, at in told.items()
        ]
        return f" {'; '.join(lines)}." if lines else ""


class Place(NamedTuple):
    """What a rank said of itself."""

    process: int
    updates: int
    node: str

    def __str__(self) -> str:
        if self.node != platform.node():
            return f"process {self.process} on {self.node}"
        return f"process {self.process}, {_state(self.process)}"


def whereabouts(folder: Path) -> dict[int, Place]:
    """What each rank said in ``folder``, by rank."""
    found = {}
    for path in folder.glob("at-*[0-9]"):
        with contextlib.suppress(OSError, ValueError):
            process, updates, node = path.read_text().split()
            found[int(path.name[3:])] = Place(int(process), int(updates), node)
    return dict(sorted(found.items()))


def _state(process: int) -> str:
    """What the kernel says of a process."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return {"Z": "dead", "X": "dead", "T": "stopped", "D": "waiting for a disk"}.get(state, "alive")


@contextmanager
def explained(
    clock: Clock, config: TrainConfig, beats: Beats, evaluating: bool = False
) -> Iterator[None]:
    """What torch raises of memory and of other ranks, as a TrainingError that says what to do;
    ``evaluating``: it happens while a split is evaluated."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        where = (
            f"the evaluation after update {clock.updates}"
            if evaluating
            else (f"update {clock.updates}")
        )
        ways = ways_to_evaluate(config) if evaluating else ways_out(config)
        raise TrainingError(
            f"{where}: the GPU has no memory left ({str(error).splitlines()[0]}). Ways out: {ways}"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if parallel.world_size() == 1 or not _of_a_collective(error):
            raise
        raise RankLost(
            f"rank {parallel.rank()}, after update {clock.updates}: the other ranks do not answer "
            f"({text.splitlines()[0][:300]}; runtime.collective_timeout="
            f"{config.runtime.collective_timeout:g} s).{beats.others()} Go on with resume=auto"
        ) from error


def _of_a_collective(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    words = ("gloo", "nccl", "timed out", "timeout", "connection closed", "connection reset")
    return any(word in str(error).lower() for word in words)


def ways_out(config: TrainConfig) -> str:
    """At most three options with which a training step needs less memory."""
    half = max(1, config.batch_size // 2)
    ways = [f"batch_size={half} accumulate={config.accumulate * 2} (changes the loss: fewer pairs)"]
    if not config.runtime.activation_checkpointing:
        ways.append("runtime.activation_checkpointing=true (the same numbers, a third slower)")
    if config.grad_cache is None and model_class(config.model).cacheable():
        ways.append(f"grad_cache={max(1, half // 4)} (the same loss from small pieces)")
    if config.precision == "fp32":
        ways.append("precision=bf16")
    ways.append("more devices (devices=N)")
    return "; ".join(ways[:3])


def ways_to_evaluate(config: TrainConfig) -> str:
    """Options with which an evaluation needs less memory and gives the same numbers."""
    ways = [f"runtime.eval_batch_size={max(1, config.runtime.eval_batch_size // 4)}"]
    has_second_stage = model_class(config.model).rerank is not RetrievalModel.rerank
    if has_second_stage and config.rerank.enabled is not False:
        ways.append(f"rerank.batch_size={max(1, config.rerank.batch_size // 4)}")
    return " ".join(ways) + "; then go on with resume=auto"
