"""The progress bar keeps its times on a narrow terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from itr.training.console import ProgressDisplay, fitting

VALUES = {"train/loss": 29.6213, "train/lr": 0.00084, "train/pairs_per_second": 1660.2}


def test_the_first_words_that_fit() -> None:
    words = ("epoch 3", "loss 29.62", "1660 pairs/s")
    assert [fitting(words, width) for width in (6, 7, 18, 19, 33)] == [
        "",
        "epoch 3",
        "epoch 3",
        "epoch 3  loss 29.62",
        "epoch 3  loss 29.62  1660 pairs/s",
    ]


@pytest.mark.parametrize(
    ("width", "present", "absent"),
    [(60, "epoch 3", "loss"), (80, "loss 29.62", "lr"), (120, "lr 0.00084", "…")],
)
def test_numbers_give_way_to_counts_and_times(width: int, present: str, absent: str) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with ProgressDisplay(console, 120_000) as display:
        display.numbers(3, 114_000, VALUES)
        page = Console(file=io.StringIO(), width=width)
        page.print(display.progress.get_renderable())
    line = page.file.getvalue()  # type: ignore[attr-defined]
    assert "114000/120000" in line and line.count(":") == 4 and "…" not in line
    assert present in line and absent not in line
