"""Speed of answering among a fixed list against one question at a time.

``python benchmarks/answer_speed.py``: a decoder of six layers with random weights and BERT's
vocabulary ranks 3,128 answers for 1,000 questions, 128 of them in full. The answers have as many
pieces as those of VQA v2's usual list, and share first pieces as they do. The baseline is the
authors' loop (`benchmarks.literal.answer_ranking`); it runs on a share of the questions
(``--share``), scaled up, ours on all. Each side has a process of its own, for its peak memory. CPU
seconds of one thread; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.literal.answer_ranking import answer
from itr.nn.answer_ranking import AnswerList, rank_answers
from itr.nn.bert.decoder import AnswerDecoder
from itr.nn.bert.fusion import FusionTextConfig

# Answers of 1, 2, ... pieces; 1,927 of one, 1,201 longer, 1.55 on average, as in VQA v2's list.
PIECES = (1927, 800, 300, 70, 25, 6)
FIRST = 2188  # distinct first pieces
WORDS = 10  # ids of a question
VOCABULARY, START, END = 30522, 101, 102


def answer_list() -> AnswerList:
    """Random answers of these lengths; long ones share their first pieces with others."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.repeat_interleave(torch.arange(1, len(PIECES) + 1), torch.tensor(PIECES))
    count, longest = len(lengths), len(PIECES) + 2
    tokens = torch.randint(1000, VOCABULARY, (count, longest), generator=draw)
    tokens[:, 0] = START
    firsts = 1000 + torch.randperm(VOCABULARY - 1000, generator=draw)[:FIRST]
    shared = torch.randint(FIRST, (count - FIRST,), generator=draw)
    tokens[:, 1] = torch.cat([firsts, firsts[shared]])
    place = torch.arange(longest)
    tokens = tokens.masked_fill(place > lengths[:, None] + 1, 0)
    tokens[torch.arange(count), lengths + 1] = END
    order = torch.randperm(count, generator=draw)
    return AnswerList.of(tokens[order], (place <= lengths[:, None] + 1)[order])


def questions(count: int, width: int) -> tuple[Tensor, Tensor]:
    """Random states of questions and their masks."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, WORDS + 1, (count,), generator=draw)
    return torch.randn(count, WORDS, width, generator=draw), torch.arange(WORDS) < lengths[:, None]


def measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds for all questions, the peak memory in MiB and the answers of one side."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = options.width
    text = FusionTextConfig(width=width, mlp_width=4 * width, heads=2, dropout=0.0, fusion_layer=1)
    decoder = AnswerDecoder(text, VOCABULARY, 6).eval()
    answers = answer_list()
    states, mask = questions(options.questions, width)
    known = torch.arange(answers.tokens.shape[1]) < answers.pieces[:, None] + 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, best = time.process_time(), []
    scaled = 1.0
    with torch.inference_mode():
        if side == "ours":
            for some, words in zip(
                states.split(options.batch_size), mask.split(options.batch_size), strict=True
            ):
                ranked = rank_answers(decoder, some, words, answers, options.k)
                best += ranked.ids[:, 0].tolist()
        else:
            part = max(1, round(options.share * options.questions))
            scaled = options.questions / part
            for number in range(part):
                row = slice(number, number + 1)
                given = (decoder, states[row], mask[row], answers.tokens, known)
                best.append(int(answer(*given, options.k, True)[0][0]))
    seconds = (time.process_time() - started) * scaled
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "mebibytes": peak / 1024, "best": best}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--side", choices=("ours", "loop"), help="measure only this one")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options)))
        return
    found = {}
    for side in ("ours", "loop"):
        command = [sys.executable, "-m", "benchmarks.answer_speed", "--side", side, *sys.argv[1:]]
        found[side] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    ours, loop = (found[side].pop("best") for side in ("ours", "loop"))
    same = ours[: len(loop)] == loop
    ratio = found["loop"]["seconds"] / found["ours"]["seconds"]
    report = {
        **{
            f"{side}_{key}": float(f"{value:.3g}")
            for side, values in found.items()
            for key, value in values.items()
        },
        "ratio": float(f"{ratio:.3g}"),
        "same_answers": same,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
