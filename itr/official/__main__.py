"""Authors' checkpoints: itr official convert IN OUT | inspect IN | export IN OUT."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from itr import checkpoint
from itr.command import command
from itr.errors import CheckpointError
from itr.models.build import restore
from itr.official.load import IMPORTERS, convert, open_file
from itr.official.name_table import Imported


@command
def main(arguments: Sequence[str]) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="itr official", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("convert", help="authors' file -> ours (safetensors + JSON)")
    made.add_argument("source", type=Path)
    made.add_argument("out", type=Path, help="*.safetensors, or a folder")
    made.add_argument("--tokenizer", help="name or directory of the tokenizer to keep inside")
    seen = commands.add_parser("inspect", help="say what an authors' file holds")
    seen.add_argument("source", type=Path)
    for parsed in (made, seen):
        for flag, what in (("--heads", "a text encoder"), ("--image-heads", "an image tower")):
            parsed.add_argument(
                flag, type=int, help=f"attention heads of {what} that is not of the published size"
            )
    back = commands.add_parser("export", help="ours -> what the authors' code loads")
    back.add_argument("source", type=Path)
    back.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "convert":
        heads = (options.heads, options.image_heads)
        _report(convert(options.source, options.out, options.tokenizer, *heads))
        print(f"written: {options.out}")
    elif options.command == "inspect":
        found = open_file(options.source, None, options.heads, options.image_heads)
        _report(found[1])
    else:
        export(options.source, options.out)
        print(f"written: {options.out}")


def export(source: Path, out: Path) -> None:
    """Write our checkpoint ``source`` as the authors' code would have saved it."""
    meta = checkpoint.read_meta(source)
    name = meta["model_name"]
    if name not in IMPORTERS:
        raise CheckpointError(f"{source}: model={name} has no authors' format that is known here")
    torch.save(IMPORTERS[name][0].export(restore(source, meta)), out)


def _report(imported: Imported) -> None:
    report = imported.report
    print(f"method: {imported.model_name}")
    for key, value in imported.info.items():
        if key != "opt":
            print(f"{key}: {value}")
    for data, depth in imported.depth.items():
        print(f"candidates re-ranked ({'any data set' if data == '*' else data}): {depth}")
    print(f"weights matched by their own name: {len(report.matched)}")
    print(f"weights renamed: {len(report.renamed)}")
    for theirs, ours in report.renamed:
        print(f"  {theirs} -> {ours}")
    for title, names in (("ignored", report.ignored), ("left as initialised", report.missing)):
        print(f"{title}: {len(names)}")
        for name in names:
            print(f"  {name}")


if __name__ == "__main__":
    sys.exit(main())
