"""Ranks that read shards, in processes of their own, and what they saw."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from itr.data.layouts import DataConfig, open_split
from itr.data.loader import TrainLoader
from itr.data.text import build_table, open_tokenizer
from itr.view import PixelView, View

VIEW = View(kind="pixels", tokenizer="wordpiece", unit="pair", pixels=PixelView(size=8))


def write_shards(folder: Path, samples: int, shards: int) -> None:
    """``samples`` tiny pictures whose shade and text tell their number, spread over ``shards``."""
    folder.mkdir(parents=True)
    pictures = []
    for shade in range(16):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), shade * 16, np.uint8)).save(file, "JPEG")
        pictures.append(file.getvalue())
    for shard, numbers in enumerate(np.array_split(np.arange(samples), shards)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers.tolist():
                for ending, content in (("jpg", pictures[number % 16]), ("txt", b"%d" % number)):
                    info = tarfile.TarInfo(f"{number:08d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def loader_of(root: Path, **options: Any) -> TrainLoader:
    """The training loader of one rank, made as training makes it."""
    data = DataConfig("yfcc", "", shards=str(root), cache=str(root.parent / "cache"))
    split = open_split(data, "train", "pixels")
    tokenizer = open_tokenizer(VIEW, ["0 1 2 3 4 5 6 7 8 9"])
    table = build_table(tokenizer, split.captions(), VIEW.text, data.cache)
    return TrainLoader(split, VIEW, table, tokenizer, **options)


def read(root: Path, out: Path, epoch: int, first: int, pause: float, options: Any) -> None:
    """Write the image ids of each batch from ``first`` on to ``out``, a line a batch."""
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    with out.open("a") as file:
        for batch in loader_of(root, **options).epoch(epoch, first):
            means = batch.pixels[:, 0].mean((1, 2)) * VIEW.pixels.std[0] + VIEW.pixels.mean[0]
            assert torch.equal((means * 255 / 16).round().long(), batch.image_id % 16)
            file.write(" ".join(map(str, batch.image_id.tolist())) + "\n")
            file.flush()
            time.sleep(pause)


def start(
    root: Path, out: Path, epoch: int, first: int = 0, pause: float = 0, **options: Any
) -> BaseProcess:
    """`read` in a process of its own."""
    process = multiprocessing.get_context("fork").Process(
        target=read, args=(root, out, epoch, first, pause, options)
    )
    process.start()
    return process


def seen(out: Path) -> list[int]:
    """The ids in all whole lines of ``out``."""
    lines = out.read_text().split("\n")[:-1] if out.exists() else []
    return [int(number) for line in lines for number in line.split()]


def kill_after(process: BaseProcess, out: Path, ids: int) -> int:
    """Kill ``process`` once ``out`` holds so many ids; cut what is no whole line. Lines left."""
    while len(seen(out)) < ids:
        assert process.is_alive(), "it ended too early"
        time.sleep(0.02)
    process.kill()
    process.join()
    text = out.read_text()
    out.write_text(text[: text.rindex("\n") + 1])
    return out.read_text().count("\n")
