"""Every method's training step and evaluation against a literal re-writing of the same arithmetic.

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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the code beside this file

from benchmarks.cases import CASES, Case, tiny  # noqa: E402
from benchmarks.parts import parts  # noqa: E402
from benchmarks.sides import (  # noqa: E402
    Evaluations,
    Twosome,
    compare_metrics,
    compare_step,
    operators,
)

Row = list[str]


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
clock = time.perf_counter  # main() chooses


def seconds(action: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = clock()
    action()
    return clock() - started


def in_turn(
    ours: Callable[[], Any], literal: Callable[[], Any], limit: float, most: int = 9
) -> tuple[float, float, int]:
    """Median seconds of both, called in turn: at least 3 pairs, ``most``, or ``limit`` seconds.

    The ratio is that of the medians; a first call of each is not counted.
    """
    ours(), literal()
    found: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    while len(found[0]) < 3 or (len(found[0]) < most and time.perf_counter() - started < limit):
        found[0].append(seconds(ours))
        found[1].append(seconds(literal))
    return statistics.median(found[0]), statistics.median(found[1]), len(found[0])


def numbers(times: tuple[float, float, int], unit: float, digits: int) -> Row:
    """Ours, literal, ratio, pairs, as cells."""
    ours, literal, pairs = times
    cells = [f"{ours * unit:,.{digits}f}", f"{literal * unit:,.{digits}f}"]
    return [*cells, f"{literal / ours:.2f}", str(pairs)]


def measure(case: Case, tables: Tables, limit: float) -> None:
    """Compare, then time, one method."""
    started = time.perf_counter()
    worst = compare_step(case)
    both = Twosome(case)
    counts = [operators(both.ours), operators(both.literally)]
    times = in_turn(both.ours, both.literally, limit)
    (ops, syncs), (literal_ops, literal_syncs) = counts
    tables.steps.append(
        [
            case.name,
            str(case.pairs),
            *numbers(times, 1000, 0),
            f"{ops:,} / {literal_ops:,}",
            f"{syncs} / {literal_syncs}",
            f"{worst:.0e}",
        ]
    )
    say(f"{case.name}: step {times[0]:.2f} s against {times[1]:.2f} s")
    for what, ours, literal in parts(both):
        times = in_turn(ours, literal, limit / 8)
        tables.parts.append([case.name, what, *numbers(times, 1000, 1)])
        say(f"{case.name}: {what} {times[0] * 1000:.1f} ms against {times[1] * 1000:.1f} ms")
    del both
    if case.name == "alip":
        fair = Twosome(case, checkpointing=False)
        times = in_turn(fair.ours, fair.literally, limit / 2)
        tables.parts.append(
            [case.name, "the whole step, checkpointing off on both sides", *numbers(times, 1000, 1)]
        )
        del fair
    with tempfile.TemporaryDirectory() as folder:
        evaluations = Evaluations(case, Path(folder))
        compare_metrics(case, evaluations.ours(), evaluations.literally())
        times = in_turn(evaluations.ours, evaluations.literally, limit / 2, most=5)
    what = f"{case.images} x 5" + (f", k = {case.rerank_k}" if case.rerank_k else "")
    tables.evaluations.append([case.name, what, *numbers(times, 1, 2)])
    say(f"{case.name}: evaluation {times[0]:.2f} s against {times[1]:.2f} s")
    say(f"{case.name}: done in {time.perf_counter() - started:.0f} s")


def table(head: Row, rows: list[Row]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


NOTES = """
Literal: `benchmarks/literal/<method>.py`, the same arithmetic with the loops and passes of the
public code: loops over samples, captions and queries, one draw a time, a GRU pass a sample, a
momentum loop and an AdamW loop over weights, cloned queues, each pair's image projected anew, whole
77-word contexts, every image encoded once for each of its captions (region methods), one query a
time, one argsort a query. Towers (BERT, ViT, RoBERTa, CLIP, the layers of HREM's graph) and all
weights are those of `itr` on both sides. Before a method is timed, both sides must give the same
loss (1e-5) and gradients (1e-4 of each tensor's norm; the column has the largest difference) over
two steps with the same draws and no dropout, and the same recalls.

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
evaluation: 145 image tokens, text 2 + 2 layers, width 64. Multi-SEA: 197 patches, 40 words, A-Former
of 4 layers, width 128, queue 1,000; evaluation: 65 patches, width 64.
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--methods", default=",".join(CASES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=12.0, help="of pairs of steps, a method")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this script")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="words for it")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    globals()["clock"] = CLOCKS[options.clock]
    tables, started = Tables(), time.perf_counter()
    names = options.methods.split(",")
    for number, name in enumerate(names, start=1):
        say(f"[{number}/{len(names)}, {time.perf_counter() - started:.0f} s] {name} ...")
        measure(tiny(CASES[name]) if options.tiny else CASES[name], tables, options.seconds)
    page = report(tables, options)
    print(page)
    if options.out is not None:
        options.out.write_text(page)
    return page


if __name__ == "__main__":
    main()
