"""The console command: ``itr COMMAND ...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from itr.command import Commands, command, run_group
from itr.version import __version__

SUMMARY = "Train, evaluate and compare image-text retrieval models."
COMMANDS: Commands = {
    "train": ("itr.jobs.entry:train", "train a model (same as python train.py)"),
    "eval": ("itr.jobs.entry:evaluate", "evaluate a run or an authors' checkpoint (eval.py)"),
    "sweep": ("itr.sweep.cli:main", "run the jobs of a sweep file"),
    "data": ("itr.data.__main__:main", "check, convert and measure datasets"),
    "results": ("itr.results.__main__:main", "tables of results; compare two runs"),
    "runs": ("itr.results.runs.cli:main", "list, tag, archive and delete runs"),
    "sync": ("itr.results.trackers.sync_cli:main", "upload offline runs to Weights & Biases"),
    "gallery": (
        "itr.jobs.commands.gallery_cli:main",
        "write an HTML page of a run's hits and misses",
    ),
    "search": ("itr.jobs.commands.embed_search_cli:search", "find the images that match a text"),
    "embed": (
        "itr.jobs.commands.embed_search_cli:embed",
        "write embeddings of images and texts",
    ),
    "ask": ("itr.jobs.commands.ask_cli:ask", "ask a model about a picture of your own"),
    "export": (
        "itr.jobs.export.hub_cli:main",
        "write a model as transformers, open_clip or peft load it",
    ),
    "official": ("itr.official.__main__:main", "inspect, convert, export authors' checkpoints"),
    "options": ("itr.help:main", "print every option (--markdown: docs/configuration.md)"),
    "verify": ("itr.verify_cli:main", "compare checkpoints with their checksums"),
    "losses": ("itr.jobs.commands.losses_cli:main", "print which loss fits which model"),
    "completion": ("itr.completion:main", "print the completion script of bash, zsh or fish"),
}


@command
def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    if arguments[:1] == ["--version"]:
        print(f"itr {__version__}")
        return 0
    return run_group("itr", SUMMARY, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
