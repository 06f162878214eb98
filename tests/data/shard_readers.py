"""Ranks that read shards, in processes of their own, and what they saw.

As a script: ROOT OUT RANK WORLD WORKERS BATCH SEED EPOCH START SLEEP writes the image ids of each
batch to OUT, a line a batch, as soon as it has it.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def write_shards(folder: Path, samples: int, shards: int) -> None:
    """``samples`` tiny pictures whose text is their number, spread over ``shards`` tars."""
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


def loader_of(root: Path, rank: int, world: int, workers: int, batch: int, seed: int):
    """The training loader of one rank, made as training makes it."""
    from itr.data.layouts import DataConfig, open_split
    from itr.data.loader import TrainLoader
    from itr.data.text import build_table, open_tokenizer
    from itr.view import PixelView, View

    data = DataConfig("yfcc", "", shards=str(root), cache=str(root.parent / "cache"))
    split = open_split(data, "train", "pixels")
    view = View(kind="pixels", tokenizer="wordpiece", unit="pair", pixels=PixelView(size=8))
    tokenizer = open_tokenizer(view, ["0 1 2 3 4 5 6 7 8 9"])
    table = build_table(tokenizer, split.captions(), view.text, root.parent / "cache")
    return TrainLoader(
        split, view, table, tokenizer, batch, seed, workers=workers, rank=rank, world=world
    )


def start(out: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """This script with ``ROOT OUT RANK WORLD WORKERS BATCH SEED EPOCH START SLEEP``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    root, *rest = arguments
    command = [sys.executable, __file__, str(root), str(out), *map(str, rest)]
    return subprocess.Popen(command, env=environment)


def seen(out: Path) -> list[int]:
    """The ids of all whole lines of ``out``."""
    text = out.read_text()
    lines = text.split("\n")[:-1]
    return [int(number) for line in lines for number in line.split()]


def main() -> None:
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank, world, workers, batch, seed, epoch, first = map(int, sys.argv[3:10])
    loader = loader_of(root, rank, world, workers, batch, seed)
    with out.open("a") as file:
        for found in loader.epoch(epoch, first):
            # The text says which picture it belongs to: pairs must not come apart.
            shades = (
                (found.pixels[:, 0].mean((1, 2)) * 0.26862954 + 0.48145466) * 255 / 16
            ).round()
            assert (shades == found.image_id % 16).all()
            file.write(" ".join(map(str, found.image_id.tolist())) + "\n")
            file.flush()
            time.sleep(float(sys.argv[10]))


if __name__ == "__main__":
    main()
