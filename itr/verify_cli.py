"""``itr verify``: compares checkpoints with their checksums."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from itr import checkpoint
from itr.command import USER_ERROR, command, print_error
from itr.errors import CheckpointError
from itr.terminal import say


@command
def main(arguments: Sequence[str]) -> int:
    """Print whether each checkpoint is undamaged; the exit code is 2 if one is damaged."""
    parser = argparse.ArgumentParser(
        prog="itr verify",
        description="Compare checkpoints with the checksums in them. Exit code 2: one is damaged.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN_DIR|FILE", help="runs, folders or checkpoints"
    )
    damaged = 0
    for path in _checkpoints(parser.parse_args(arguments).paths):
        try:
            tensors = checkpoint.verify(path)
        except CheckpointError as error:
            damaged += 1
            print_error(str(error))
        else:
            size = path.stat().st_size / 1e6
            say(f"{path}: undamaged ({tensors:,} tensors, {size:,.1f} MB)")
    return USER_ERROR if damaged else 0


def _checkpoints(paths: Sequence[Path]) -> list[Path]:
    """The files among ``paths``, and the checkpoints in the folders and runs among them."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        inside = sorted(folder.glob("*.safetensors"))
        if not inside:
            raise CheckpointError(
                f"{path}: contains no checkpoint; expected a run directory or *.safetensors files"
            )
        found.extend(inside)
    return found
