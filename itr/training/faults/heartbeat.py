"""Heartbeat files: each rank's last completed update, used to diagnose hangs and crashes."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

from itr import parallel
from itr.files import atomic_write

HEARTBEAT_DIR = "ITR_HEARTBEAT_DIR"  # environment variable set by our own launcher
RANKS = "ranks"  # folder in the run directory, used under any other launcher
MIN_INTERVAL = 1.0  # seconds between two writes into a run directory


class Heartbeat:
    """Records the progress of this rank in a file that the other ranks can read.

    Files go into the folder of our own launcher. Under another launcher they go into
    ``run``/ranks, at most once every `MIN_INTERVAL` seconds because that disk may be shared.
    """

    def __init__(self, run: Path):
        folder = os.environ.get(HEARTBEAT_DIR)
        self.folder = Path(folder) if folder else run / RANKS
        self.interval = 0.0 if folder else MIN_INTERVAL
        self.next_write = 0.0

    @property
    def path(self) -> Path:
        """The file of this rank."""
        return self.folder / f"at-{parallel.rank()}"

    def write(self, updates: int) -> None:
        """Record that this rank has completed ``updates``. A full disk is ignored."""
        now = time.monotonic()
        if parallel.world_size() == 1 or now < self.next_write:
            return
        self.next_write = now + self.interval
        with contextlib.suppress(OSError), atomic_write(self.path, durable=False) as file:
            file.write(f"{os.getpid()} {updates} {platform.node()}".encode())

    def remove(self) -> None:
        """Delete the file of this rank; the last rank also deletes the folder."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.folder.rmdir()

    def describe_peers(self) -> str:
        """A sentence about the other ranks, or "" if none has written a heartbeat."""
        heartbeats = read_heartbeats(self.folder)
        heartbeats.pop(parallel.rank(), None)
        lines = [
            f"rank {rank} ({status}) last completed update {status.updates}"
            for rank, status in heartbeats.items()
        ]
        return f" {'; '.join(lines)}." if lines else ""


class RankStatus(NamedTuple):
    """The content of one heartbeat file."""

    process: int
    updates: int
    node: str

    def __str__(self) -> str:
        if self.node != platform.node():
            return f"process {self.process} on {self.node}"
        return f"process {self.process}, {_process_state(self.process)}"


def read_heartbeats(folder: Path) -> dict[int, RankStatus]:
    """The readable heartbeat files in ``folder`` by rank."""
    heartbeats = {}
    for path in folder.glob("at-*[0-9]"):
        with contextlib.suppress(OSError, ValueError):
            process, updates, node = path.read_text().split()
            heartbeats[int(path.name[3:])] = RankStatus(int(process), int(updates), node)
    return dict(sorted(heartbeats.items()))


def _process_state(process: int) -> str:
    """State of a process on this machine according to the kernel."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    states = {"Z": "dead", "X": "dead", "T": "stopped", "D": "waiting for a disk"}
    return states.get(state, "alive")
