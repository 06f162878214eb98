"""``itr results plot``: figures of runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from itr.command import command
from itr.files import atomic_write
from itr.results.escapes import markdown

if TYPE_CHECKING:
    from itr.results.plots.style import Plot

ABOUT = """Draw figures for a paper from run directories: learning curves with seeds as bands,
configurations as bars, paper against ours, results against the cost of training, score histograms,
and the modality gap where a run directory holds embeddings (eval.py embeddings=RUN_DIR/
embeddings.safetensors). Each is written as PNG, PDF and CSV; figures.md lists them."""


@command
def main(arguments: Sequence[str]) -> None:
    """Draw every figure that the runs have numbers for."""
    parser = argparse.ArgumentParser(prog="itr results plot", description=ABOUT)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or folders of runs"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--split", default="test", help="split whose results are drawn (default: %(default)s)"
    )
    options = parser.parse_args(arguments)

    from itr.results.plots.style import in_style, save
    from itr.terminal import PlainConsole  # imported here, so that --help answers at once

    with in_style():
        listed = []
        for plot in _plots(options):
            save(plot, options.out)
            listed.append(
                f"## {plot.name}\n\n![]({plot.name}.png)\n\n{markdown(plot.caption)}\n\n"
                f"[PDF]({plot.name}.pdf), [CSV]({plot.name}.csv)\n"
            )
    with atomic_write(options.out / "figures.md") as file:
        file.write("\n".join(listed).encode())
    PlainConsole().print(f"wrote {len(listed)} figures to {options.out}", soft_wrap=True)


def _plots(options: argparse.Namespace) -> Iterator[Plot]:
    from itr.results.collect import collect, find_results
    from itr.results.plots import comparisons, curves, distributions
    from itr.results.plots.groups import groups_of
    from itr.results.published import load_published

    published = load_published()
    found = find_results(options.runs)
    for group in groups_of(collect(found, options.split)):
        yield from filter(
            None,
            (
                curves.learning_curves(group),
                comparisons.ablation(group),
                comparisons.paper_against_ours(group, published),
                comparisons.against_cost(group),
                distributions.score_histograms(group),
            ),
        )
    for run in found:
        if run.folder is not None:
            yield from distributions.modality_gap(run.folder)
