"""Which results share a row, what a row is compared with, and its notes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itr.evaluation.protocols import PROTOCOLS
from itr.evaluation.query_log import QueryLog, build_query_log, read_queries
from itr.evaluation.ranks import Ranks
from itr.evaluation.retrieval_set import RetrievalSet
from itr.evaluation.score_tables import MatrixTable
from itr.results.__main__ import main
from itr.results.collect import ResultRow, collect, find_results
from itr.results.compare import compare, comparison_table
from itr.results.export import to_csv, to_markdown
from itr.results.paper_tables import PaperTable, paper_tables
from itr.results.published import load_published
from itr.results.results_file import write_results
from itr.results.terminal_tables import results_table
from tests.results.synthetic_runs import run


def f30k(folder: Path, **more: Any) -> Path:
    return run(folder, **{"data": "f30k", "trained_on": "f30k", "test/protocol": "f30k_1k", **more})


def rows_of(folder: Path, split: str = "test") -> list[ResultRow]:
    return collect(find_results([folder]), split, resamples=0)


def only(folder: Path, split: str = "test") -> PaperTable:
    (table,) = paper_tables(rows_of(folder, split), load_published())
    return table


def lines(table: PaperTable, kind: str) -> list[Any]:
    return [line for line in table.lines if line.kind == kind]


def test_a_validation_split_is_not_compared_with_test_rows(tmp_path: Path) -> None:
    facts = {"model": "hrem", "data": "f30k", "trained_on": "f30k", "select_on": "val"}
    write_results(tmp_path / "a", {**facts, "val/protocol": "f30k_1k", "val/i2t_r1": 50.0})
    assert [line.kind for line in only(tmp_path, "val").lines] == ["ours"]
    facts = {"model": "multisea", "data": "coco", "trained_on": "coco", "select_on": "val"}
    write_results(tmp_path / "a", {**facts, "val/protocol": "coco_5k", "val/rsum": 440.0})
    table = only(tmp_path, "val")
    assert [line.cells[-1] for line in table.lines] == ["450.5", "449.1", "440.0", "-10.5"]
    written = to_csv(rows_of(tmp_path, "val"), load_published(), [table])
    assert {record["split"] for record in csv.DictReader(io.StringIO(written))} == {"val"}


def test_an_ensemble_with_a_model_selected_on_test_is_marked(tmp_path: Path) -> None:
    mixed = {"ensemble": 2, "select_on": "val,test", "test/member_2/i2t_r1": 1.0}
    f30k(tmp_path / "a", **mixed, **{"test/member_1/i2t_r1": 1.0})
    marks = {line.name: (line.marks, line.selection) for line in lines(only(tmp_path), "ours")}
    assert marks["hrem (ours)"] == ("*†", "val, test")
    assert marks["hrem, member 1 (ours)"] == ("", "val")
    assert marks["hrem, member 2 (ours)"] == ("†", "test")
    table = results_table({"test/rsum": 1.0, "select_on": "val,test"}, "x")
    assert "one of the checkpoints was selected on the TEST split" in str(table.caption)


def test_authors_checkpoints_show_how_they_were_selected(tmp_path: Path) -> None:
    official = {"official": True, "select_on": None, "seed": None, "trained_on": None}
    f30k(tmp_path / "hrem", **official)
    (ours,) = lines(only(tmp_path), "ours")
    assert (ours.marks, ours.selection) == ("†", "authors: test")
    (delta,) = lines(only(tmp_path), "delta")
    assert delta.marks == ""  # the paper's row was chosen on test, too
    known = load_published()
    assert (
        known.selection("multisea", None) is None and known.selection("multisea", "f30k") == "test"
    )
    assert known.selection("user", None) == "val" and known.selection("nobody", "coco") is None


def test_results_without_a_seed_are_not_seeds_of_one_row(tmp_path: Path) -> None:
    none = {"seed": None, "seedless_hash": None, "model": None, "select_on": "unknown"}
    for folder, content in (("a/out", "1"), ("b/out", "2")):
        run(tmp_path / folder, **none, scores="sims.npz", scores_sha256=content)
    assert [len(row.runs) for row in rows_of(tmp_path)] == [1, 1]
    for folder in ("c", "d"):
        run(tmp_path / "e" / folder, **none, official=True, checkpoint_sha256="same")
    (row,) = rows_of(tmp_path / "e")
    assert len(row.runs) == 1 and row.mean("rsum")[1] is None


def test_different_data_of_the_same_name_is_a_separate_row(tmp_path: Path) -> None:
    run(tmp_path / "a", **{"test/data_hash": "1", "test/precision": "fp32"})
    run(tmp_path / "b", **{"test/data_hash": "2", "test/precision": "fp32"})
    run(tmp_path / "c", **{"test/data_hash": "2", "test/precision": "bf16"})
    assert len(rows_of(tmp_path)) == 3


@pytest.mark.parametrize(
    ("trained", "against"),
    [
        (None, []),
        ("14M", ["ours - ALBEF 14M, pre-trained file alone"]),
        ("4M", ["ours - ALBEF 4M, pre-trained file alone", "ours - ALBEF 4M, contrast alone"]),
        ("f30k", ["ours - ALBEF 14M"]),
    ],
)
def test_training_data_select_the_published_counterpart(
    tmp_path: Path, trained: str | None, against: list
) -> None:
    stage = {"test/first_stage/i2t_r1": 80.0, "test/rerank_k": 128}
    f30k(tmp_path / "a", model="albef", official=True, trained_on=trained, **stage)
    table = only(tmp_path)
    assert [line.name for line in lines(table, "delta")] == against
    assert any("contrast alone, first stage" in line.name for line in lines(table, "paper"))
    asked = "trained_on= one of f30k, coco, 14M, 4M" in str(table.notes)
    assert asked == (trained is None)


def test_limits_of_a_comparison_are_noted(tmp_path: Path) -> None:
    more = {"data": "coco", "trained_on": "coco", "test/protocol": "coco_5k", "ensemble": 3}
    run(tmp_path / "a", **more, **{"test/n_captions": 25010})
    table = only(tmp_path)
    assert lines(table, "delta")[0].name == "ours - HREM"
    notes = "\n".join(table.notes)
    assert "hrem: 3 models, compared with 2" in notes
    assert "hrem: 25,010 captions, HREM: 25,000" in notes
    assert "HREM: BUTD regions, BERT-base; quoted by others, not seen in the paper" in notes
    assert "misprint [hrem_readme]: the released checkpoint is a single model" in notes
    quoted = next(line for line in lines(table, "paper") if line.name == "HREM [aahr]")
    assert quoted.marks == "*†?" and quoted.trained == "coco"


def test_tables_of_cxc_eccv_and_classification(tmp_path: Path) -> None:
    metrics = {f"{way}_{m}": 30.0 for way in ("i2t", "t2i") for m in ("map_at_r", "rprecision")}
    metrics |= {"i2t_r1": 70.0, "t2i_r1": 71.0}
    cxc = {f"{way}_r{k}": 50.0 for way in ("i2t", "t2i", "i2i", "t2t") for k in (1, 5, 10)}
    coco = {"model": "vse", "data": "coco", "trained_on": "coco", "test/protocol": "coco_5k"}
    run(
        tmp_path / "a",
        **coco,
        **{f"test/eccv/{key}": value for key, value in metrics.items()},
        **{f"test/cxc/{key}": value for key, value in {**cxc, "rsum": 300.0}.items()},
        **{"test/cxc/within_modality": "first stage"},
    )
    facts = {"model": "alip", "data": "flowers102", "trained_on": "yfcc", "select_on": "val"}
    found = {"protocol": "zeroshot", "top1": 50.0, "mean_per_class": 52.5, "n_images": 6149}
    found |= {"reported": "mean_per_class", "n_classes": 102}
    write_results(tmp_path / "b", {**facts, **{f"test/{k}": v for k, v in found.items()}})
    tables = {t.protocol: t for t in paper_tables(rows_of(tmp_path), load_published())}
    assert list(tables) == ["coco_5k", "cxc", "eccv", "zeroshot"]
    (eccv,) = lines(tables["eccv"], "ours")
    assert eccv.cells == ["30.0", "30.0", "70.0", "30.0", "30.0", "71.0"]
    paper = lines(tables["cxc"], "paper")[0]
    assert paper.cells == ["60.6", "", "", "46.2", "", "", "", "44.4", "45.9"]
    assert lines(tables["cxc"], "ours")[0].cells[-2:] == ["50.0", "50.0"]
    assert "i2i and t2t use first stage scores" in str(tables["cxc"].notes)
    assert [line.cells[-1] for line in tables["zeroshot"].lines] == ["54.8", "52.5", "-2.3"]
    assert "(6,149 images, 102 classes)" in tables["zeroshot"].title
    shown = to_markdown(list(tables.values()))
    assert "i2t mAP@R" in shown and "mean per class" in shown


def log_of(ranks: dict[str, Ranks], images: int = 20) -> QueryLog:
    owner = np.repeat(np.arange(images), 2)
    scores = np.random.default_rng(0).normal(size=(images, 2 * images)).astype(np.float32)
    return build_query_log(
        MatrixTable(scores), RetrievalSet(owner, images), [PROTOCOLS["full"]], ranks
    )


def drawn(seed: int, depth: int | None, images: int = 20) -> Ranks:
    draw = np.random.default_rng(seed)
    values = [draw.integers(1, 15, size).astype(float) for size in (images, 2 * images)]
    if depth is not None:
        values[0][values[0] > depth] = 41.0  # behind the candidates that were re-ranked
        values[1] = values[1].clip(max=depth)
    return Ranks(*values, depth)


def test_ranks_beyond_the_shortlist_are_unknown(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        log_of({"full": drawn(seed, 10)}).save(tmp_path / name, "test", {})
    back = read_queries(tmp_path / "a").ranks["full"]
    assert (
        back.depth == 10 and back.beyond_depth("i2t").any() and not back.beyond_depth("t2i").any()
    )
    protocol, found = compare(tmp_path / "a", tmp_path / "b")
    assert protocol == "full" and "t2i_rank" in found and "i2t_rank" not in found
    caption = str(comparison_table("x", ("a", "b"), found).caption)
    assert "all 8 tests" in caption and "i2t mean rank: omitted" in caption
    log_of({"full": drawn(0, None)}).save(tmp_path / "a", "test", {})
    assert "i2t_rank" not in compare(tmp_path / "a", tmp_path / "b")[1]


def test_runs_evaluated_only_with_cxc_can_be_compared(tmp_path: Path, capsys: Any) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        ranks = {"cxc": drawn(seed, None), "cxc/within": drawn(seed, None)}
        log_of(ranks).save(tmp_path / name, "test", {})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "test, cxc" in capsys.readouterr().out
    asked = ["--protocol", "full"]
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *asked]) == 2
    assert "protocol full (available: cxc)" in capsys.readouterr().err


def test_every_row_has_intervals(tmp_path: Path) -> None:
    ranks = {name: drawn(seed, None) for seed, name in enumerate(("full", "cxc", "cxc/within"))}
    ranks |= {"first_stage/full": drawn(4, None)}
    run(
        tmp_path / "a",
        images=20,
        **{"test/first_stage/i2t_r1": 1.0, "test/cxc/i2t_r1": 2.0, "test/cxc/t2t_r1": 3.0},
    )
    log_of(ranks).save(tmp_path / "a", "test", {})
    rows = collect(find_results([tmp_path]), resamples=50)
    found = {(row.protocol, row.variant): set(row.intervals) for row in rows}
    assert len(found["full", ""]) == 7
    assert found["full", "first_stage"] == {"i2t_r1"}
    assert found["cxc", ""] == {"i2t_r1", "t2t_r1"}
    row = next(row for row in rows if row.protocol == "cxc")
    assert row.intervals["t2t_r1"].value == 100 * (ranks["cxc/within"].t2i <= 1).mean()
