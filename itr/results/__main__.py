"""What runs have given: ``itr results [table] RUNS...``, ``itr results compare A B`` and more.

A command with a file of its own is found by name, as in `itr.cli`.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itr.command import Commands, command, run_group
from itr.files import atomic_write, explain_write_error

PROG = "itr results"
COMMANDS: Commands = {  # beside table and compare
    "page": ("itr.results.page.cli:main", "write one static page of all runs"),
    "plot": ("itr.results.plots.cli:main", "draw figures for a paper: PNG, PDF and CSV"),
    "dashboard": (
        "itr.sweep.dashboard_cli:main",
        "make a W&B workspace or report, or bring it up to date",
    ),
}
TEXT = "text"  # as wide as the terminal
FORMATS = {"markdown": "results.md", "latex": "results.tex", "csv": "results.csv"}
TABLE = """Print a table of results per dataset and protocol: published numbers, our runs with 95 %
bootstrap intervals, mean and standard deviation over seeds, and the difference from the paper."""
COMPARE = """Test whether run B differs from run A, query by query: sign-flip permutation tests for
R@K and rSum, Wilcoxon tests for the mean ranks, with Holm's correction."""

EPILOG = "\n".join(
    [
        "other commands (--help for each):",
        *(f"  {name:10s} {what}" for name, (_, what) in COMMANDS.items()),
        "\n`itr results RUNS...` is short for `itr results table RUNS...`.",
    ]
)


@command
def main(arguments: Sequence[str]) -> int:
    """Run a subcommand and return its exit code; without one, ``table``."""
    given = list(arguments)
    if given and given[0] in COMMANDS:
        return run_group(PROG, "", COMMANDS, given)
    parser = _parser()
    if given and given[0] not in ("table", "compare", "-h", "--help"):
        given.insert(0, "table")
    options = parser.parse_args(given)
    options.run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Tables of results, and paired comparisons of two runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_table(commands)
    _add_compare(commands)
    return parser


def _add_table(commands: Any) -> None:
    table = commands.add_parser("table", help="published numbers and ours", description=TABLE)
    table.set_defaults(run=_table, parser=table)
    table.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS", help="run directories, or folders of runs"
    )
    table.add_argument(
        "--wandb",
        metavar="GROUP",
        help="also read the finished runs of this Weights & Biases group",
    )
    table.add_argument(
        "--project",
        default="itr",
        help="project of --wandb, as PROJECT or ENTITY/PROJECT (default: %(default)s)",
    )
    table.add_argument(
        "--split", default="test", help="split whose results are shown (default: %(default)s)"
    )
    table.add_argument(
        "--format",
        choices=(TEXT, *FORMATS),
        help=f"output format (default: {TEXT} on a terminal, else markdown)",
    )
    table.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"also write all formats to this folder ({', '.join(FORMATS.values())})",
    )
    table.add_argument(
        "--all", action="store_true", help="include published methods of which there is no run"
    )


def _add_compare(commands: Any) -> None:
    paired = commands.add_parser(
        "compare", help="paired significance tests of two runs", description=COMPARE
    )
    paired.set_defaults(run=_compare)
    for name in ("A", "B"):
        paired.add_argument(
            name.lower(),
            type=Path,
            metavar=name,
            help=f"run {name}: a run directory, or the out=DIR of an evaluation",
        )
    paired.add_argument(
        "--split", default="test", help="split that is compared (default: %(default)s)"
    )
    paired.add_argument(
        "--protocol", help="protocol that is compared (default: the first protocol of A)"
    )


def _compare(options: argparse.Namespace) -> None:
    from itr.results.compare import compare, comparison_table
    from itr.terminal import PlainConsole  # imported here, so that --help answers at once

    protocol, tests = compare(options.a, options.b, options.split, options.protocol)
    names = str(options.a), str(options.b)
    PlainConsole().print(comparison_table(f"{options.split}, {protocol}", names, tests))


def _table(options: argparse.Namespace) -> None:
    if not options.runs and not options.wandb:
        options.parser.error("pass run directories, a folder of runs, or --wandb GROUP")
    from itr.results.collect import StoredRun, collect, find_results
    from itr.results.export import to_csv, to_latex, to_markdown, to_text
    from itr.results.paper_tables import paper_tables
    from itr.results.published import load_published
    from itr.results.wandb_runs import runs_of_group

    runs: list[StoredRun] = find_results(options.runs) if options.runs else []
    if options.wandb:
        runs += runs_of_group(options.project, options.wandb)
    rows, published = collect(runs, options.split), load_published()
    tables = paper_tables(rows, published, options.all)
    texts = {
        "markdown": to_markdown(tables),
        "latex": to_latex(tables),
        "csv": to_csv(rows, published, tables),
    }
    chosen = options.format or (TEXT if sys.stdout.isatty() else "markdown")
    columns = shutil.get_terminal_size().columns
    sys.stdout.write(to_text(tables, columns) if chosen == TEXT else texts[chosen])
    if options.out:
        _write(options.out, texts)


def _write(folder: Path, texts: dict[str, str]) -> None:
    with explain_write_error(folder, "the tables", "pass another --out"):
        with contextlib.ExitStack() as stack:  # all of them, or none
            for kind, name in FORMATS.items():
                file = stack.enter_context(atomic_write(folder / name))
                file.write(texts[kind].encode())
                file.flush()  # a full disk is met before the first one is renamed
    from itr.terminal import PlainConsole  # imported here, so that --help answers at once

    written = ", ".join(str(folder / name) for name in FORMATS.values())
    PlainConsole(stderr=True).print(f"wrote {written}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
