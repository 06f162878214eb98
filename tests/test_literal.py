"""The fast forms against literal re-writings of each method, at a tiny size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.cases import tiny
from benchmarks.comparison import Evaluations, compare_metrics, compare_step
from benchmarks.methods import CASES
from benchmarks.step_times import main
from tests.conftest import ROOT


@pytest.mark.parametrize("name", CASES)
def test_step_equals_the_literal_loss_and_gradients(name: str) -> None:
    compare_step(tiny(CASES[name]), batches=2)


@pytest.mark.parametrize("name", CASES)
def test_evaluation_equals_the_literal_recalls(name: str, tmp_path: Path) -> None:
    case = tiny(CASES[name])
    both = Evaluations(case, tmp_path)
    compare_metrics(case, both.ours(), both.literally())


def test_the_script_prints_a_row_for_whatever_it_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--tiny", "--seconds=0", "--methods=alip,vse", f"--out={tmp_path / 'steps.md'}"])
    page = (tmp_path / "steps.md").read_text()
    assert page in capsys.readouterr().out
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| alip", "| vse"))]
    assert len(rows) == 5 + 6  # a step, its parts, an evaluation
    assert min(float(row[4]) for row in rows) > 0


def test_make_bench_runs_every_benchmark() -> None:
    """Each named one is a module that runs, and a module that runs is named or compares runs."""
    text = (ROOT / "Makefile").read_text()
    named = re.search(r"^BENCHMARKS := (.*)$", text, re.MULTILINE)
    assert named is not None
    runs = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    needs_a_run = {"page_speed"}
    assert {*named[1].split(), "step_times"} == runs - needs_a_run
