"""Time and size of `itr runs` and `itr results page` for many runs.

python benchmarks/page_speed.py RUN_DIR [COUNT]   # copies of a finished run
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from itr.cli import main

FILES = ("config.yaml", "metrics.jsonl", "train.log", "results.json")


def copies(run: Path, folder: Path, count: int) -> None:
    """``count`` runs in ``folder``; every tenth has no results."""
    texts = {name: (run / name).read_text() for name in FILES}
    results = json.loads(texts["results.json"])
    for number in range(count):
        copy = folder / f"group{number % 20}" / f"{run.name}-{number}"
        copy.mkdir(parents=True)
        changed = {**results, "seed": number, "seedless_hash": str(number // 3)}
        for name, text in {**texts, "results.json": json.dumps(changed)}.items():
            if name != "results.json" or number % 10:
                (copy / name).write_text(text)


def report(name: str, arguments: list[str]) -> None:
    """Run a command and print what it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        assert main(arguments) == 0
    spent = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{name}: {spent[0]:.1f} s of CPU, {spent[1]:.1f} s")


if __name__ == "__main__":
    source, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    with tempfile.TemporaryDirectory() as place:
        runs, site = Path(place) / "runs", Path(place) / "site"
        copies(source, runs, count)
        report(f"itr runs, {count} runs", ["runs", str(runs)])
        report(
            f"itr results page, {count} runs", ["results", "page", str(runs), "--out", str(site)]
        )
        print(f"index.html: {(site / 'index.html').stat().st_size / 1e6:.1f} MB")
