"""itr results: published numbers, rows over seeds, three formats, paired comparison."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import yaml

from itr.errors import DataError
from itr.evaluation.query_log import read_queries
from itr.evaluation.statistics import METRICS, recall_intervals
from itr.nn.tower.tower_names import open_clip_names
from itr.results.__main__ import main
from itr.results.collect import collect, find_results
from itr.results.export import to_latex, to_markdown
from itr.results.paper_tables import paper_tables, published_counterpart
from itr.results.published import FILE, load_published
from itr.results.results_file import read_results, write_results
from tests.results.synthetic_runs import run


def test_published_sums_equal_their_recalls():
    known = load_published()
    for row in known.rows:
        parts = [*row.i2t, *row.t2i]
        if row.rsum is not None and None not in parts:  # six rounded numbers: at most 0.3 apart
            assert sum(filter(None, parts)) == pytest.approx(row.rsum, abs=0.3), row
        for three in (row.i2t, row.t2i):
            there = [value for value in three if value is not None]
            assert there == sorted(there) and all(0 < value <= 100 for value in there), row
    assert {row.model for row in known.rows} >= {"hrem", "user", "vse", "alip", "albef", "multisea"}


def test_known_misprints_are_not_rows():
    rows = load_published().rows
    values = {(row.model, row.test, row.protocol, row.i2t, row.t2i) for row in rows}
    for wrong in (
        ("albef", "f30k", "f30k_1k", (77.6, 94.1, 97.2), (61.0, 84.5, 90.7)),
        ("hrem", "f30k", "f30k_1k", (84.2, 96.7, 98.4), (64.0, 88.0, 92.8)),
    ):
        assert wrong not in values
    laps = [row.t2i for row in rows if (row.model, row.test) == ("laps", "coco")]
    assert len(laps) == 4 and (71.9, 93.7, None) not in laps
    assert laps.count((51.2, 79.3, None)) == 1  # its own values on 5K


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection": "luck"}, "selection: luck; expected one of val, test"),
        ({"source": "nobody"}, "source: nobody"),
        ({"i2t": [1.0]}, "row 1 .*three values"),
        ({"colour": "red"}, "row 1 has 'colour'; expected model, label"),
    ],
)
def test_an_invalid_row_is_named(tmp_path: Path, change: dict, message: str):
    content = yaml.safe_load(FILE.read_text())
    content["rows"][0] |= change
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=message):
        load_published(tmp_path / "published.yaml")


def test_seeds_share_a_row_and_other_configurations_do_not(tmp_path: Path):
    for seed in (0, 1, 2):
        run(tmp_path / f"s{seed}", seed=seed)
    run(tmp_path / "other", noise=0.5, seedless_hash="bb")
    rows = collect(find_results([tmp_path]), resamples=300)
    assert [len(row.runs) for row in rows] == [1, 3]
    assert {row.name for row in rows} == {"hrem (batch_size=30)", "hrem (batch_size=31)"}
    three = rows[1]
    each = [read_results(tmp_path / f"s{seed}")["test/i2t_r1"] for seed in (0, 1, 2)]
    assert three.mean("i2t_r1") == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    logs = [read_queries(tmp_path / f"s{seed}") for seed in (0, 1, 2)]
    ranks = [log.ranks["full"] for log in logs]
    expected = recall_intervals(ranks, logs[0].text_to_image, resamples=300)
    assert three.intervals == expected
    assert three.intervals["rsum"].value == pytest.approx(three.mean("rsum")[0])


def test_a_later_evaluation_of_a_seed_replaces_the_earlier_one(tmp_path: Path):
    run(tmp_path / "a")
    results = {**read_results(tmp_path / "a"), "test/i2t_r1": 99.0}
    write_results(tmp_path / "b", results)
    (row,) = collect(find_results([tmp_path]), resamples=0)
    assert row.values["i2t_r1"] == [99.0] and len(row.runs) == 1
    results["test/tie_break"] = "mean"  # another way to count is another row
    write_results(tmp_path / "b", results)
    assert len(collect(find_results([tmp_path]), resamples=0)) == 2


def f30k(folder: Path, **more: object) -> Path:
    facts = {"data": "f30k", "trained_on": "f30k", "test/protocol": "f30k_1k", **more}
    return run(folder, **facts)


def test_rows_that_are_not_comparable_are_marked(tmp_path: Path):
    f30k(tmp_path / "val", select_on="val")
    f30k(tmp_path / "test", select_on="test", seedless_hash="bb")
    f30k(tmp_path / "many", ensemble=2, seedless_hash="cc")
    rows, known = collect(find_results([tmp_path]), resamples=50), load_published()
    (table,) = paper_tables(rows, known)
    lines = {(line.kind, line.name): line for line in table.lines}
    paper = next(line for key, line in lines.items() if key[0] == "paper" and "README" not in key)
    assert "†" in paper.marks and paper.selection == "test"
    deltas = [line for line in table.lines if line.kind == "delta"]
    ours = [line for line in table.lines if line.kind == "ours"]
    # There is no published ensemble to compare the ensemble with.
    assert len(ours) == 3 and len(deltas) == 2
    assert sorted(line.marks for line in deltas) == ["", "‡"]
    assert sorted(line.marks.rstrip("◆") for line in ours) == ["", "*", "†"]
    assert sum("◆" in line.marks for line in ours) == 1
    printed = next(row for row in known.of("f30k", "f30k_1k") if row.reference)
    single = next(
        row for row in rows if row.fact("select_on") == "val" and not row.fact("ensemble")
    )
    assert published_counterpart(single, known.of("f30k", "f30k_1k")) == printed
    difference = single.values["i2t_r1"][0] - printed.i2t[0]
    assert f"{difference:+.1f}" in [line.cells[0] for line in deltas]
    notes = "\n".join(table.notes)
    for expected in ("ensemble of several", "selected on the test split", "selected on different"):
        assert expected in notes
    assert "chan" not in str(table.lines).lower()
    assert "chan" in str(paper_tables(rows, known, all_methods=True)).lower()


def test_all_formats_contain_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture):
    f30k(tmp_path / "runs" / "a_b")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "out" / "results.md").read_text()
    records = list(csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text())))
    ours = {record["metric"]: record for record in records if record["kind"] == "ours"}
    results = read_results(tmp_path / "runs" / "a_b")
    assert list(ours) == list(METRICS)
    for metric, record in ours.items():
        value = results[f"test/{metric}"]
        assert float(record["value"]) == value and f"{value:.1f}" in shown
        assert float(record["low"]) <= value <= float(record["high"])
        if record["paper"]:
            assert float(record["delta"]) == pytest.approx(value - float(record["paper"]))
    tex = (tmp_path / "out" / "results.tex").read_text()
    assert r"\begin{tabular}{lrrrrrrrrrrrr}" in tex and r"hrem\_readme" in tex and "†" not in tex
    rows = [line for line in tex.splitlines() if line.count(" & ") > 1]
    assert all(line.count(" & ") == 12 and line.endswith(r"\\") for line in rows)


def test_first_stage_and_additional_rows_are_named(tmp_path: Path):
    more = {"test/first_stage/i2t_r1": 1.0, "test/first_stage/rsum": 6.0}
    more |= {"test/csls/coco_1k_5fold/rsum": 7.0}
    run(tmp_path / "a", **more)
    rows = collect(find_results([tmp_path]), resamples=0)
    names = [(row.protocol, row.name) for row in rows]
    assert names == [
        ("full", "hrem"),
        ("full", "hrem, first stage"),
        ("coco_1k_5fold", "hrem, csls"),
    ]
    assert to_latex(paper_tables(rows, load_published())) and to_markdown(
        paper_tables(rows, load_published())
    )


def test_missing_runs_are_an_error(tmp_path: Path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no results.json" in capsys.readouterr().err


def test_compare_two_runs(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    a, b = run(tmp_path / "a", noise=1.5), run(tmp_path / "b", noise=0.5)
    assert main(["compare", str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    difference = read_results(b)["test/rsum"] - read_results(a)["test/rsum"]
    line = next(line.split() for line in shown.splitlines() if line.strip().startswith("rSum"))
    assert line[3] == f"{difference:+.2f}" and line[6] == "<0.001" and line[-1] == "*"


def test_compare_refuses_different_queries(tmp_path: Path, capsys):
    a, b = run(tmp_path / "a"), run(tmp_path / "b", images=30)
    assert main(["compare", str(a), str(b)]) == 2
    error = capsys.readouterr().err
    assert "(text_to_image: 200, starting with [0, 0, 0] and 150" in error
    (b / "queries-test.npz").unlink()
    assert main(["compare", str(a), str(b)]) == 2
    assert "queries-test.npz: no such file" in capsys.readouterr().err
    assert main(["compare", str(a), str(a), "--protocol", "coco_5k"]) == 2
    assert "protocol coco_5k (available: full)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tower", "trained_on", "expected"),
    [
        ("ViT-B-32/laion2b_s34b_b79k", None, (84.1, 96.2, 98.3)),
        ("google/siglip-base-patch16-224", None, (89.1, 98.0, 99.3)),
        ("my/tower", None, None),
        ("ViT-B-32/laion2b_s34b_b79k", "f30k", None),  # fine-tuned
    ],
)
def test_a_tower_is_compared_with_the_row_of_its_own_name(
    tmp_path: Path, tower: str, trained_on: str | None, expected: tuple[float, ...] | None
) -> None:
    facts = {"model": "clip", "tower": tower, "data": "f30k", "test/protocol": "f30k_1k"}
    run(tmp_path / "run", select_on="zero-shot", trained_on=trained_on, **facts)
    (row,) = collect(find_results([tmp_path]), resamples=0)
    found = published_counterpart(row, load_published().of("f30k", "f30k_1k"))
    assert (found and found.i2t) == expected
    assert row.name.startswith(f"clip, loss hrem, {tower}")


def test_published_towers_are_names_that_open_clip_knows() -> None:
    known = {f"{name}/{tag}" for name, tags in open_clip_names().items() for tag in tags}
    named = {name for row in load_published().rows for name in row.tower}
    hub = {"openai", "google", "laion"}
    assert {name for name in named if name.partition("/")[0] not in hub} <= known
