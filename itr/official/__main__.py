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
from itr.files import atomic_write, explain_write_error
from itr.models.build import restore_merged
from itr.official.load import convert, importers, open_file
from itr.official.name_table import Imported
from itr.terminal import say


@command
def main(arguments: Sequence[str]) -> None:
    """Run one command."""
    options = _parser().parse_args(arguments)
    if options.command == "convert":
        heads = (options.heads, options.image_heads)
        _print_report(convert(options.source, options.out, options.tokenizer, *heads))
        say(f"written: {options.out}")
    elif options.command == "inspect":
        _, imported = open_file(options.source, None, options.heads, options.image_heads)
        _print_report(imported)
    else:
        rank = export(options.source, options.out)
        if rank is not None:
            say(f"the adapters of rank {rank} are merged into the weights")
        say(f"written: {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="itr official", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    converting = commands.add_parser(
        "convert", help="authors' checkpoint to our format (safetensors and JSON)"
    )
    converting.add_argument("source", type=Path)
    converting.add_argument("out", type=Path, help="*.safetensors, or a folder")
    converting.add_argument("--tokenizer", help="name or directory of a tokenizer to store inside")
    inspecting = commands.add_parser("inspect", help="print what an authors' checkpoint holds")
    inspecting.add_argument("source", type=Path)
    for subcommand in (converting, inspecting):
        for flag, what in (("--heads", "text encoder"), ("--image-heads", "image encoder")):
            subcommand.add_argument(
                flag,
                type=int,
                help=f"attention heads of the {what}, if it is not of the published size",
            )
    exporting = commands.add_parser("export", help="our checkpoint to the authors' format")
    exporting.add_argument("source", type=Path)
    exporting.add_argument("out", type=Path)
    return parser


def export(source: Path, out: Path) -> int | None:
    """Write our checkpoint ``source`` to ``out`` in the authors' format.

    Adapters are merged into the weights; returns their rank, None if there are none.

    Raises CheckpointError for a method without an importer.
    """
    meta = checkpoint.read_model_meta(source)
    name = meta["model_name"]
    if name not in importers():
        raise CheckpointError(
            f"{source}: no authors' format is known for model={name}; expected one of "
            f"{', '.join(importers())}"
        )
    model, rank = restore_merged(source, meta)
    payload = importers()[name].module.export(model)
    with (
        explain_write_error(out, "the checkpoint", "pass OUT elsewhere"),
        atomic_write(out) as file,
    ):
        torch.save(payload, file)
    return rank


def _print_report(imported: Imported) -> None:
    report = imported.report
    say(f"method: {imported.model_name}")
    for key, value in imported.info.items():
        if key != "opt":
            say(f"{key}: {value}")
    for data, depth in imported.depth.items():
        say(f"candidates re-ranked ({'any dataset' if data == '*' else data}): {depth}")
    say(f"weights of the same name: {len(report.matched)}")
    say(f"weights renamed: {len(report.renamed)}")
    for theirs, ours in report.renamed:
        say(f"  {theirs} -> {ours}")
    for title, names in (("ignored", report.ignored), ("left at initial values", report.missing)):
        say(f"{title}: {len(names)}")
        for name in names:
            say(f"  {name}")


if __name__ == "__main__":
    sys.exit(main())
