"""Times every method's training step and evaluation against a literal implementation.

    python benchmarks/step_times.py [--methods hrem,user] [--threads 2] [--out benchmarks/steps.md]

For each method: equal losses, gradients and recalls are asserted first; then both are timed in
turn, and the medians are printed as a Markdown table. What is timed is said below the table.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the code beside this file

from benchmarks.cases import Case, shrunk, tiny  # noqa: E402
from benchmarks.comparison import (  # noqa: E402
    Evaluations,
    SideBySide,
    compare_losses,
    compare_metrics,
    compare_step,
)
from benchmarks.method_parts import Part, parts  # noqa: E402
from benchmarks.methods import CASES  # noqa: E402
from benchmarks.operator_counts import count_operators, host_syncs  # noqa: E402

Row = list[str]
# Gradients are compared on so many pairs: with a hundred, some ReLU, maximum or hinge lies so near
# its kink that rounding decides which way its gradient goes.
PAIRS_COMPARED = 16


@dataclass
class Tables:
    """What was measured, row by row."""

    steps: list[Row] = field(default_factory=list)
    parts: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)


def say(*words: Any) -> None:
    """Progress, to the terminal only."""
    print(*words, file=sys.stderr, flush=True)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Action = Callable[[], Any]


@dataclass
class Timer:
    """Calls two things in turn and gives the medians of their seconds."""

    clock: Callable[[], float]
    limit: float  # seconds that the pairs of one method's whole steps may take

    def seconds(self, action: Action) -> float:
        """Seconds of one call."""
        started = self.clock()
        action()
        return self.clock() - started

    def in_turn(
        self, ours: Action, literal: Action, share: float, least: int = 3, most: int = 9
    ) -> tuple[float, float, int]:
        """Medians of ours and of literal, and the number of pairs: ``least``, and more up to
        ``most`` as long as ``share`` of the limit is not spent. Call both once before."""
        found: tuple[list[float], list[float]] = ([], [])
        end = time.perf_counter() + share * self.limit
        while len(found[0]) < least or (len(found[0]) < most and time.perf_counter() < end):
            found[0].append(self.seconds(ours))
            found[1].append(self.seconds(literal))
        return statistics.median(found[0]), statistics.median(found[1]), len(found[0])


def numbers(times: tuple[float, float, int], unit: float, digits: int) -> Row:
    """Ours, literal, ratio, pairs, as cells."""
    ours, literal, pairs = times
    cells = [f"{ours * unit:,.{digits}f}", f"{literal * unit:,.{digits}f}"]
    return [*cells, f"{literal / ours:.2f}", str(pairs)]


def measure(case: Case, tables: Tables, timer: Timer) -> None:
    """Compare, then time, one method."""
    compare_losses(case)
    worst = compare_step(shrunk(case, max(1, case.pairs // PAIRS_COMPARED)))
    both = SideBySide(case)
    seen = [count_operators(side) for side in (both.ours, both.literally)]  # also warms up
    counts = [count.total() for count in seen], [host_syncs(count).total() for count in seen]
    times = timer.in_turn(both.ours, both.literally, 1.0)
    cells = [f"{ours:,} / {literal:,}" for ours, literal in counts]
    tables.steps.append(
        [case.name, str(case.pairs), *numbers(times, 1000, 0), *cells, f"{worst:.0e}"]
    )
    say(f"{case.name}: step {times[0]:.2f} s against {times[1]:.2f} s")
    measure_parts(case, parts(both), tables, timer)
    del both
    if case.name == "alip":
        fair = SideBySide(case, checkpointing=False)
        what = "the whole step, checkpointing off"
        measure_parts(case, iter([(what, fair.ours, fair.literally)]), tables, timer)
        del fair
    with tempfile.TemporaryDirectory() as folder:
        evaluations = Evaluations(case, Path(folder))
        compare_metrics(case, evaluations.ours(), evaluations.literally())
        times = timer.in_turn(evaluations.ours, evaluations.literally, 0.5, least=2, most=5)
    what = f"{case.images} x 5" + (f", k = {case.rerank_k}" if case.rerank_k else "")
    tables.evaluations.append([case.name, what, *numbers(times, 1, 2)])
    say(f"{case.name}: evaluation {times[0]:.2f} s against {times[1]:.2f} s")


def measure_parts(case: Case, found: Iterator[Part], tables: Tables, timer: Timer) -> None:
    """Time parts of a step."""
    for what, ours, literal in found:
        ours(), literal()
        times = timer.in_turn(ours, literal, 0.1)
        tables.parts.append([case.name, what, *numbers(times, 1000, 1)])
        say(f"{case.name}: {what} {times[0] * 1000:.1f} ms against {times[1] * 1000:.1f} ms")


def table(head: Row, rows: list[Row]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


NOTES = """
Literal: `benchmarks/literal/<method>.py`, the same arithmetic with the loops and passes of the
public code: loops over samples, captions and queries, one draw a time, a GRU pass a sample, a
momentum loop (ALBEF's also over the half that retrieval never uses) and an AdamW loop over weights,
cloned queues, each pair's image projected anew, whole 77-word contexts, every image encoded once
for each of its captions (region methods), one query a time, one argsort a query. Towers (BERT, ViT,
RoBERTa, CLIP, the layers of HREM's graph) and all weights are those of `itr` on both sides. Before
a method is timed, both sides must give the same loss (1e-5) at the size that is timed, the same
gradients of some 16 pairs (1e-4 of each tensor's norm; the column has the largest difference) with
the same draws and no dropout, and the same recalls (over several steps: `tests/test_literal.py`).

A step is forward, backward, clipping, AdamW, momentum and queues in float32, with the recipe's
dropout (ALBEF: distillation at 0.4; HREM: graph on; VSE: hardest negatives; Multi-SEA: an update
every micro-batch). Operators: calls below autograd that are no views, whole step, towers included;
a GRU counts one for each place, which a GPU does in one. Waits: numbers that the host reads, shapes
that depend on values, torch's own multinomial. A part runs forward and backward from given
fragments or embeddings. Evaluation reads its images, encodes, ranks and re-ranks.

Sizes: 36 x 2048 regions (HREM and VSE leave a fifth out), joint width 1024, BERT of 2 layers and
width 256, captions of 8 to 24 ids, USER's queue 2,048. ALIP: ViT-B/32 at 224 pixels and text, 4
layers of width 256 each, texts of 8 to 32 ids; its literal step computes activations twice, as the
public code always does. ALBEF: ViT/16 at 224, 4 layers, text 3 + 3 layers, width 192, queue 65,536;
evaluation: 145 image tokens, text 2 + 2 layers, width 64. Multi-SEA: 197 patches, A-Former of 4
layers, width 128, queue 1,000; evaluation: 65 patches, width 64.
"""


def report(tables: Tables, options: argparse.Namespace) -> str:
    """The whole page."""
    what = "wall time" if options.clock == "wall" else "CPU time of the process"
    times = ["ours", "literal", "ratio", "pairs timed"]
    head = ["method", "batch", "step ours, ms", "literal, ms", "ratio", "pairs timed"]
    return "\n\n".join(
        [
            "# Training steps and evaluations against literal re-writings",
            f"`python benchmarks/step_times.py`: {options.machine}, {options.threads} thread(s), "
            f"Python {platform.python_version()}, torch {torch.__version__}, transformers "
            f"{transformers.__version__}. Medians of calls in turn, {what}; ratio: literal / ours.",
            table(
                [*head, "operators ours / literal", "waits ours / literal", "largest difference"],
                tables.steps,
            ),
            "The method's own parts, ms:",
            table(["method", "part", *times], tables.parts),
            "Evaluation, s:",
            table(["method", "images x captions", *times], tables.evaluations),
            NOTES.strip(),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> str:
    """Measure, print, and give the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", default=",".join(CASES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="of pairs of steps, a method")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine")
    parser.add_argument("--shrink", type=int, default=1, help="divides batches and galleries")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this script")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="words for it")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    timer, tables = Timer(CLOCKS[options.clock], options.seconds), Tables()
    names, started, page = options.methods.split(","), time.perf_counter(), ""
    for number, name in enumerate(names, start=1):
        say(f"[{number}/{len(names)}, {time.perf_counter() - started:.0f} s] {name} ...")
        case = tiny(CASES[name]) if options.tiny else CASES[name]
        measure(case if options.shrink == 1 else shrunk(case, options.shrink), tables, timer)
        page = report(tables, options)
        if options.out is not None:
            options.out.write_text(page)
    print(page)
    say(f"{time.perf_counter() - started:.0f} s in all")
    return page


if __name__ == "__main__":
    main()
