"""A process that reads a region array as training does and prints its anonymous memory in MB.

Pages of the array are in the page cache (RssFile), which the system can reclaim. RssAnon is the
memory that it cannot.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from itr.data.checks.fingerprint import content_hash
from itr.data.layouts.precomp import read_split
from itr.data.layouts.region_arrays import check_regions_finite
from itr.data.loading.loader import LoaderOptions, TrainData, TrainLoader
from itr.data.text.tokenizer import Tokenizer
from itr.view import RegionView, TextView, View


def anonymous(process: str = "self") -> float:
    """RssAnon of a process in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{process}/status has no RssAnon")


def write_large(folder: Path, rows: int, split: str = "train", width: int = 2048) -> float:
    """Write a sparse region array with a few values per row, and one caption per row.

    Returns the size in MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = (rows, 36, width)
    array = np.lib.format.open_memmap(folder / f"{split}_ims.npy", "w+", np.float32, shape)
    array[:, 0, 0] = np.arange(1, rows + 1)
    array.flush()
    lines = [f"picture number {number % 997}" for number in range(rows)]
    (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    return array.nbytes / 2**20


def main() -> None:
    """Check, hash and read one epoch of ``folder``; print the memory before and at its peak."""
    split_folder, before = Path(sys.argv[1]), anonymous()
    split = read_split(split_folder, "train")
    peak = anonymous()
    check_regions_finite(split)
    content_hash(split)
    peak = max(peak, anonymous())
    tokenizer = Tokenizer.from_captions(split.captions(), 200)
    view = View("regions", "wordpiece", regions=RegionView(drop=0.2))
    table = tokenizer.tokenize(split.captions(), TextView())
    loader = TrainLoader(TrainData(split, view, table, tokenizer), LoaderOptions(64, num_workers=2))
    for batch in loader.epoch(0):
        assert batch.regions is not None
        peak = max(peak, anonymous())
    print(before, peak)


if __name__ == "__main__":
    main()
