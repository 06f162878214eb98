"""Text from outside in Markdown, LaTeX and CSV: shown as it is, and nothing else."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from itr.results.collect import collect, find_results
from itr.results.escapes import csv_cell, latex, markdown
from itr.results.export import to_csv, to_latex, to_markdown
from itr.results.paper_tables import paper_tables
from itr.results.published import load_published
from tests.results.synthetic_runs import run

ODD = "a|b <img src=x> [t](http://x)\n\x1b[2J {y}"


@pytest.mark.parametrize("text", ["=1+1", "@sum(a)", "+cmd|' /C calc'!A0", "-2+3", "\t=1"])
def test_a_spreadsheet_computes_nothing(text: str) -> None:
    assert csv_cell(text).startswith("'")
    assert csv_cell(-1.5) == -1.5 and csv_cell("f30k") == "f30k"


def test_one_text_in_each_medium() -> None:
    assert markdown(ODD) == "a\\|b \\<img src=x> [t]\\(http://x) \\x1b[2J {y}"
    assert latex(ODD).endswith(r"\textbackslash{}x1b[2J \{y\}")
    assert markdown("albef [albef], R@1 *, model.graph.depth=2_3") == (
        "albef [albef], R@1 *, model.graph.depth=2_3"
    )


def test_names_in_results_stay_in_their_cells(tmp_path: Path) -> None:
    names = {"model": ODD, "data": "=cmd()", "trained_on": ODD, "select_on": "a|b"}
    run(tmp_path / "a", images=8, **names)
    rows, published = collect(find_results([tmp_path]), resamples=20), load_published()
    tables = paper_tables(rows, published)
    page = to_markdown(tables)
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "<img" not in page.replace("\\<", "") and "\x1b" not in page + to_latex(tables)
    records = list(csv.DictReader(io.StringIO(to_csv(rows, published, tables))))
    assert {record["data"] for record in records} == {"'=cmd()"}
