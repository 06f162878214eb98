"""The command ``itr gallery``: writes an HTML page of a run's hits and misses."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itr.command import command
from itr.data.text.tokenizer import Tokenizer
from itr.files import atomic_write, explain_write_error
from itr.jobs.load_checkpoint import load_checkpoint
from itr.models.base import RetrievalModel
from itr.results.gallery.evaluated_run import open_run
from itr.results.gallery.item_page import (
    build_item_comparison,
    build_item_page,
    has_predictions,
    open_predicted_run,
)
from itr.results.gallery.page import build_page
from itr.results.gallery.side_by_side import build_comparison
from itr.terminal import say


@command
def main(arguments: Sequence[str]) -> None:
    """Write the page of one run."""
    parser = argparse.ArgumentParser(
        prog="itr gallery", description="Write an HTML page of a run's hits and misses."
    )
    parser.add_argument("run", type=Path, help="run directory, or out=DIR of an evaluation")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RUN_B",
        help="show the queries that one of the two runs answers right and the other does not",
    )
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--protocol", help="default: the first one evaluated")
    parser.add_argument(
        "--out", type=Path, help="default: RUN/gallery-<split>.html, -<split>-against-<RUN_B>.html"
    )
    parser.add_argument(
        "--queries", type=int, default=8, help="queries (or items) per section (default: 8)"
    )
    parser.add_argument(
        "--heat", type=int, default=6, help="captions with heat maps (default: 6; 0: none)"
    )
    parser.add_argument(
        "--heat-for",
        default="",
        metavar="WORDS",
        help="heat maps of the captions that hold these words (default: near misses, random ones)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random section (default: 0)"
    )
    options = parser.parse_args(arguments)
    name = f"gallery-{options.split}"
    if options.against is not None:
        name += f"-against-{options.against.resolve().name}"
    out = options.out or options.run / f"{name}.html"
    if has_predictions(options.run, options.split):
        predicted = open_predicted_run(options.run, options.split)
        if options.against is not None:
            page = build_item_comparison(predicted, options.against, options.queries, options.seed)
        else:
            page = build_item_page(predicted, options.queries, options.seed)
    elif options.against is not None:
        run = open_run(options.run, options.split, options.protocol)
        page = build_comparison(run, options.against, options.queries)
    else:
        run = open_run(options.run, options.split, options.protocol)
        page = build_page(run, _load, options.queries, options.heat, options.seed, options.heat_for)
    with explain_write_error(out, "the page", "pass --out elsewhere"), atomic_write(out) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, one file that needs no network")


def _load(path: Path, options: Mapping[str, Any]) -> tuple[RetrievalModel, Tokenizer]:
    loaded = load_checkpoint(path, dict(options), typed=False)
    return loaded.retriever, loaded.tokenizer
