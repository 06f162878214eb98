"""The figures of real and of synthetic runs, with the numbers behind them."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from itr.evaluation import stored_embeddings
from itr.models.base import Encoded
from itr.results.__main__ import main
from itr.results.plots.style import COLORS
from itr.results.results_file import read_results
from tests.results.synthetic_runs import run
from tests.results.trackers.test_tracker import lines

HOSTILE = "=cmd|'/C calc' $x^2$ \x1b[31m<script>"


@pytest.fixture(scope="module")
def figures(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All figures of a real run, and of synthetic ones with a published counterpart."""
    folder = tmp_path_factory.mktemp("plots")
    shutil.copytree(finished, folder / "runs" / "real", ignore=shutil.ignore_patterns("wandb"))
    images, texts = torch.randn(20, 4) + 1, torch.randn(100, 4) - 1
    stored_embeddings.save(
        folder / "runs" / "real" / "embeddings.safetensors",
        Encoded(images),
        Encoded(texts),
        {"split": "test"},
    )
    for seed in (0, 1):
        paper = {"data": "f30k", "trained_on": "f30k", "test/protocol": "f30k_1k"}
        cost = {"train_seconds": 100.0 + seed, "gpu_hours": 2.0 * seed + 1, "seedless_hash": "f"}
        run(folder / "runs" / f"f30k-{seed}", seed=seed, **paper, **cost)
        run(folder / "runs" / f"odd-{seed}", noise=2.0, seed=seed, model=HOSTILE, **paper)
    assert main(["plot", str(folder / "runs"), "--out", str(folder / "figures")]) == 0
    return folder / "figures"


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_is_a_picture_a_vector_file_and_numbers(figures: Path) -> None:
    names = {path.stem for path in figures.glob("*.png")}
    kinds = {name.partition("_")[0] for name in names}
    assert kinds == {"curves", "ablation", "paper", "cost", "scores", "gap"}
    listed = (figures / "figures.md").read_text()
    for name in names:
        with Image.open(figures / f"{name}.png") as picture:
            assert min(picture.size) > 400
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert table(figures / f"{name}.csv") and f"## {name}" in listed
    captions = [text for text in listed.splitlines() if text and text[0] not in "#![<"]
    assert len(captions) == len(names)
    for text in captions:
        assert "split" in text and ("Seeds: " in text or "Modality gap" in text), text
        assert "checkpoint selected on: val" in text or "Modality gap" in text
    assert len(set(COLORS)) == len(COLORS) == 8


def test_the_numbers_are_those_of_the_runs(figures: Path, finished: Path) -> None:
    curve = table(figures / "curves_scenes_test_full.csv")
    logged = {row["epoch"]: row["val/rsum"] for row in lines(finished / "metrics.jsonl")
              if "val/rsum" in row}  # fmt: skip
    assert {float(row["epoch"]): float(row["mean"]) for row in curve} == logged
    runs = [read_results(figures.parent / "runs" / f"f30k-{seed}") for seed in (0, 1)]
    sums = [results["test/rsum"] for results in runs]
    bars = [row for row in table(figures / "ablation_f30k_test_f30k_1k.csv")
            if row["configuration"] == "hrem"]  # fmt: skip
    assert [float(row["rsum"]) for row in bars] == sums
    assert float(bars[0]["deviation"]) == pytest.approx(statistics.stdev(sums))
    compared = table(figures / "paper_f30k_test_f30k_1k.csv")
    ours = next(row for row in compared if row["metric"] == "rsum")
    assert float(ours["ours"]) == pytest.approx(statistics.fmean(sums))
    assert float(ours["low"]) < float(ours["ours"]) < float(ours["high"])
    assert 70 < float(next(r["paper"] for r in compared if r["metric"] == "i2t_r1")) < 90
    cost = table(figures / "cost_f30k_test_f30k_1k.csv")
    assert {(row["cost"], float(row["value"])) for row in cost} == {
        ("train_seconds", 100.5),
        ("gpu_hours", 2.0),
    }
    gap = table(figures / "gap_real_embeddings.csv")
    assert [row["modality"] for row in gap].count("texts") == 100


def test_a_hostile_name_is_text(figures: Path) -> None:
    rows = table(figures / "ablation_f30k_test_f30k_1k.csv")
    name = next(row["configuration"] for row in rows if "calc" in row["configuration"])
    assert name.startswith("'=") and "\x1b" not in name
    assert "<script>" not in (figures / "figures.md").read_text()


def test_a_real_run_says_what_it_cost(finished: Path) -> None:
    results = read_results(finished)
    assert results["parameters_millions"] > 0 and results["devices"] == 1
    assert results["gpu_hours"] is None and results["peak_gpu_memory_gib"] is None  # on a CPU
    json.dumps(results, allow_nan=False)


def test_a_missing_package_is_named(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plot", str(finished), "--out", str(tmp_path)]) == 2
    assert "itr-suite[plots]" in capsys.readouterr().err
