"""The fast forms against literal re-writings of each method, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cases import CASES, tiny
from benchmarks.sides import Evaluations, compare_metrics, compare_step


@pytest.mark.parametrize("name", CASES)
def test_step_gives_the_loss_and_gradients_of_the_literal_rewriting(name: str) -> None:
    compare_step(tiny(CASES[name]), batches=2)


@pytest.mark.parametrize("name", CASES)
def test_evaluation_gives_the_recalls_of_the_literal_rewriting(name: str, tmp_path: Path) -> None:
    case = tiny(CASES[name])
    both = Evaluations(case, tmp_path)
    compare_metrics(case, both.ours(), both.literally())
