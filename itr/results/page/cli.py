"""``itr results page``: one static page of all runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from itr.command import command
from itr.files import atomic_write, explain_write_error

ABOUT = """Write one HTML file of all runs below the given folders: a table to sort and filter,
learning curves and differences of chosen runs, paper against ours, sweeps, links to galleries. It
opens without a network and on a phone."""


@command
def main(arguments: Sequence[str]) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="itr results page", description=ABOUT)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or folders of runs"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for index.html"
    )
    options = parser.parse_args(arguments)

    from itr.results.page.runs_page import (
        build_page,  # imported here, so that --help answers at once
    )
    from itr.terminal import say

    page = build_page(options.runs, options.out)
    out = options.out / "index.html"
    with explain_write_error(out, "the page", "pass another --out"), atomic_write(out) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, one file that needs no network")
