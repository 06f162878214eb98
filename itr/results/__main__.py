"""Tables of results: itr results RUNS... | compare RUN_A RUN_B | --wandb GROUP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from itr.command import command
from itr.errors import TrainingError
from itr.results.collect import Found, collect, find_results
from itr.results.compare import compare, comparison_table
from itr.results.export import latex, markdown, table_csv
from itr.results.paper_tables import sections
from itr.results.published import load_published
from itr.results.wandb_runs import runs_of_group

FORMATS = {"markdown": "results.md", "latex": "results.tex", "csv": "results.csv"}


@command
def main(arguments: Sequence[str]) -> None:
    """Run one command."""
    given = list(arguments)
    if given[:1] == ["compare"]:
        _compare(given[1:])
    else:
        _tables(given)


def _compare(given: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="itr results compare",
        description="A paired test of two runs, query by query",
    )
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="a folder with queries-*")
    parser.add_argument("--split", default="test")
    parser.add_argument("--protocol", help="default: the first that A was evaluated by")
    options = parser.parse_args(given)
    protocol, found = compare(options.runs[0], options.runs[1], options.split, options.protocol)
    a, b = map(str, options.runs)
    Console().print(comparison_table(f"{options.split}, {protocol}", (a, b), found))


def _tables(given: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="itr results",
        description="Paper against ours, with intervals and spread over seeds. "
        "Also: itr results compare RUN_A RUN_B",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="runs, or folders of runs")
    parser.add_argument("--wandb", metavar="GROUP", help="read the runs of a W&B group instead")
    parser.add_argument("--project", default="itr", help="of --wandb; ENTITY/PROJECT works, too")
    parser.add_argument("--split", default="test")
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    parser.add_argument("--out", type=Path, help="a folder; all three formats are written there")
    parser.add_argument("--all", action="store_true", help="also published methods without a run")
    options = parser.parse_args(given)
    if not options.runs and not options.wandb:
        parser.error("name a run, a folder of runs, or --wandb GROUP")
    found: list[Found] = find_results(options.runs) if options.runs else []
    if options.wandb:
        found += runs_of_group(options.project, options.wandb)
    rows, known = collect(found, options.split), load_published()
    tables = sections(rows, known, options.all)
    made = {
        "markdown": markdown(tables),
        "latex": latex(tables),
        "csv": table_csv(rows, known, tables),
    }
    sys.stdout.write(made[options.format])
    if options.out:
        _write(options.out, made)


def _write(folder: Path, made: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, name in FORMATS.items():
            (folder / name).write_text(made[kind], encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"--out {folder}: cannot be written ({error})") from error
    print(f"written: {', '.join(str(folder / name) for name in FORMATS.values())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
