"""The one console command: ``itr COMMAND ...``.

A command's module is imported when the command is called, never before.
"""

from __future__ import annotations

import importlib
import sys

from itr.version import __version__

COMMANDS = {  # command -> module:function of its arguments -> exit code, and what it does
    "train": ("itr.jobs.entry:train", "train a model (as train.py)"),
    "eval": ("itr.jobs.entry:evaluate", "evaluate a run or an authors' checkpoint (as eval.py)"),
    "sweep": ("itr.sweep.cli:main", "run the jobs of a sweep file"),
    "data": ("itr.data.__main__:main", "check, convert and measure datasets"),
    "results": ("itr.results.__main__:main", "tables of results, comparisons of two runs"),
    "gallery": ("itr.jobs.gallery_cli:main", "a page of what a run finds and misses"),
    "search": ("itr.jobs.embed_search_cli:search", "the pictures that fit a text best"),
    "embed": ("itr.jobs.embed_search_cli:embed", "embeddings of your own pictures and texts"),
    "official": ("itr.official.__main__:main", "convert, inspect and export authors' checkpoints"),
    "losses": ("itr.jobs.losses_cli:main", "which loss fits which model"),
}


def usage() -> str:
    """The commands, a line each."""
    lines = [f"  {name:10s} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: itr COMMAND ...   (itr COMMAND --help)", "", *lines])


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code. 2: there is no such command."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--version"]:
        print(__version__)
        return 0
    if given[:1] in (["--help"], ["-h"]):
        print(usage())
        return 0
    if not given or given[0] not in COMMANDS:
        print(usage(), file=sys.stderr)
        return 2
    module, _, function = COMMANDS[given[0]][0].partition(":")
    return getattr(importlib.import_module(module), function)(given[1:]) or 0


if __name__ == "__main__":
    sys.exit(main())
