"""Two ranks that read shards in separate processes and record the image ids.

As a script (ROOT FOLDER EPOCH BATCH SEED KILL_AT) it forks the ranks from a fresh process, since
the threads of a test do not survive a fork. One rank may be killed in the middle and restarted.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import signal
import sys
import tarfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from itr.data.layouts.registry import DataConfig, open_split
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.text.known_tokenizers import open_tokenizer
from itr.data.text.token_cache import tokenize_cached
from itr.view import PixelView, View
from tests import processes

WORLD, WORKERS = 2, 2
VIEW = View(kind="pixels", tokenizer="wordpiece", unit="pair", pixels=PixelView(size=8))


def write_shards(folder: Path, samples: int, shards: int) -> None:
    """Write ``samples`` tiny images whose shade and text encode their number."""
    folder.mkdir(parents=True)
    images = []
    for shade in range(16):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), shade * 16, np.uint8)).save(file, "JPEG")
        images.append(file.getvalue())
    for shard, numbers in enumerate(np.array_split(np.arange(samples), shards)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers.tolist():
                for extension, content in (("jpg", images[number % 16]), ("txt", b"%d" % number)):
                    info = tarfile.TarInfo(f"{number:08d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def loader_of(root: Path, **options: Any) -> TrainLoader:
    """The training loader of one rank, built as in training."""
    data = DataConfig("yfcc", "", shards=str(root), cache=str(root.parent / "cache"))
    split = open_split(data, "train", "pixels")
    tokenizer = open_tokenizer(VIEW, ["0 1 2 3 4 5 6 7 8 9"])
    table = tokenize_cached(tokenizer, split.captions(), VIEW.text, data.cache)
    return TrainLoader(TrainData(split, VIEW, table, tokenizer), LoaderOptions(**options))


def read_epoch(
    root: Path, folder: Path, epoch: int, batch_size: int, seed: int, kill_at: int = 0
) -> tuple[list[list[int]], int]:
    """The image ids that each rank read in ``epoch``, and the batches of rank 1 before the kill.

    ``kill_at``: kill rank 1 after so many of its batches; 0: never.
    """
    folder.mkdir()
    command = [__file__, root, folder, epoch, batch_size, seed, kill_at]
    processes.run(*map(str, command)).check_returncode()
    return [_read_ids(folder / f"rank{rank}") for rank in range(WORLD)], json.loads(
        (folder / "done").read_text()
    )


def _read_ids(out: Path) -> list[int]:
    """The ids in all whole lines of ``out``."""
    lines = out.read_text().split("\n")[:-1] if out.exists() else []
    return [int(number) for line in lines for number in line.split()]


def _read(root: Path, out: Path, epoch: int, first: int, ids: int, options: Any) -> None:
    """Write the image ids of each batch from ``first`` on to ``out``, one line per batch.

    After ``ids`` ids (0: never), write part of a line and wait to be killed.
    """
    written = 0
    with out.open("a") as file:
        for batch in loader_of(root, world_size=WORLD, num_workers=WORKERS, **options).epoch(
            epoch, first
        ):
            means = batch.pixels[:, 0].mean((1, 2)) * VIEW.pixels.std[0] + VIEW.pixels.mean[0]
            assert torch.equal((means * 255 / 16).round().long(), batch.image_id % 16)
            file.write(" ".join(map(str, batch.image_id.tolist())) + "\n")
            file.flush()
            written += len(batch)
            if 0 < ids <= written:
                file.write("12")
                file.flush()
                signal.pause()


def _start(*arguments: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_read, args=arguments)
    process.start()
    return process


def _kill(process: BaseProcess, out: Path, ids: int) -> int:
    """Kill ``process`` once it waits after ``ids`` ids, drop the partial line, count lines."""
    while len(_read_ids(out)) < ids or out.read_text().endswith("\n"):
        assert process.is_alive(), "the process ended too early"
        time.sleep(0.02)
    process.kill()
    process.join()
    text = out.read_text()
    out.write_text(text[: text.rindex("\n") + 1])
    return out.read_text().count("\n")


def main() -> None:
    root, folder = Path(sys.argv[1]), Path(sys.argv[2])
    epoch, batch_size, seed, kill_at = map(int, sys.argv[3:])
    outs = [folder / f"rank{rank}" for rank in range(WORLD)]
    options = [{"batch_size": batch_size, "seed": seed, "rank": rank} for rank in range(WORLD)]
    limits = (0, kill_at * batch_size // WORLD)
    ranks = [_start(root, outs[r], epoch, 0, limits[r], options[r]) for r in range(WORLD)]
    done = 0
    if kill_at:
        done = _kill(ranks[1], outs[1], limits[1])
        ranks[1] = _start(root, outs[1], epoch, done, 0, options[1])
    for rank in ranks:
        rank.join()
    (folder / "done").write_text(str(done))
    sys.exit(max(abs(rank.exitcode or 0) for rank in ranks))


if __name__ == "__main__":
    main()
