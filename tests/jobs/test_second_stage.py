"""Candidates of one model, re-ranked by ALBEF of another run: ``rerank.checkpoint=RUN``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from itr.batch import Batch
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.loading.eval_batches import caption_batches, image_batches
from itr.data.records import Split
from itr.data.text.token_cache import tokenize_cached
from itr.errors import CheckpointError, ConfigError, UserError
from itr.evaluation.query_log import read_queries
from itr.jobs.commands.gallery_cli import main as gallery
from itr.jobs.evaluate import evaluate
from itr.jobs.load_checkpoint import load_checkpoint
from itr.jobs.train import train
from itr.models.base import Encoded
from itr.results.collect import collect, find_results
from tests.conftest import compose
from tests.models.model_sizes import SMALL_ALBEF
from tests.nn.tiny_towers import save_tower
from tests.training.sizes import overrides

DEPTH = 12


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ALBEF that reads 48 pixels, ALIP that reads 32, HREM that reads regions."""
    folder = tmp_path_factory.mktemp("runs")
    places = [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}"]
    albef = [*SMALL_ALBEF, *places, "model.queue_size=40", "model.image.size=48"]
    given = {
        "albef": [*albef, f"rerank.k={DEPTH}"],
        "alip": overrides("alip", world),
        "hrem": overrides("hrem", world),
    }
    for name, options in given.items():
        step = ["trainer.max_steps=1", "batch_size=20", f"out={folder / name}"]
        train(compose("train", [*options, *step]))
    return {name: folder / name for name in given}


@pytest.fixture
def given(world: Path) -> list[str]:
    return [f"data.root={world / 'data'}", f"data.cache={world / 'cache'}", "device=cpu"]


def measured(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key.startswith("test/")}


def test_a_run_re_ranked_by_itself_is_its_own_evaluation(
    runs: dict[str, Path], given: list[str]
) -> None:
    own = evaluate(compose("eval", [f"checkpoint={runs['albef']}", *given]))
    second = f"rerank.checkpoint={runs['albef']}"
    found = evaluate(compose("eval", [f"checkpoint={runs['albef']}", second, *given]))
    assert measured(found) == measured(own) and own["test/rerank_k"] == DEPTH
    assert found["rerank_checkpoint_sha256"] == own["checkpoint_sha256"]


def test_each_model_reads_the_split_in_its_own_way(
    runs: dict[str, Path],
    given: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ALIP's candidates in ALBEF's order, against both computed pair by pair."""
    out, kept = tmp_path / "out", tmp_path / "first.safetensors"
    options = [f"checkpoint={runs['alip']}", f"embeddings={kept}", *given]
    alone = evaluate(compose("eval", [*options, f"out={tmp_path / 'alone'}"]))
    second = [f"rerank.checkpoint={runs['albef']}", f"out={out}", "hubness.rows=[csls]"]
    capsys.readouterr()
    found = evaluate(compose("eval", [*options, *second]))
    said = "".join(capsys.readouterr().out.split())
    assert f"re-rankedby{found['rerank_checkpoint']}" in said
    path = str(runs["albef"] / "checkpoints" / "best.safetensors")
    assert (found["model"], found["rerank_model"]) == ("alip", "albef")
    assert found["checkpoint"] == alone["checkpoint"] and found["rerank_checkpoint"] == path
    for key in ("rsum", "i2t_r1", "t2i_r10"):
        assert found[f"test/first_stage/{key}"] == alone[f"test/{key}"]
    assert "test/first_stage/hubness_csls/rsum" in found
    expected = literal_ranks(load_file(kept), runs["albef"], Path(given[0].partition("=")[2]))
    log = read_queries(out)
    assert np.array_equal(log.ranks["full"].i2t, expected["i2t"])
    assert np.array_equal(log.ranks["full"].t2i, expected["t2i"])
    for way, ranks in expected.items():
        for k in (1, 5, 10):
            assert found[f"test/{way}_r{k}"] == pytest.approx(100 * (ranks <= k).mean())
    rows = {row.name: row for row in collect(find_results([tmp_path]), resamples=20)}
    assert {"alip", "alip, re-ranked by albef"} <= set(rows)
    row = rows["alip, re-ranked by albef"]
    assert row.values["rsum"] == [found["test/rsum"]] and row.stage is None and row.intervals
    assert gallery([str(out), "--heat", "0", "--queries", "1"]) == 0
    assert path in (out / "gallery-test.html").read_text()


def literal_ranks(first: dict[str, Any], albef: Path, root: Path) -> dict[str, np.ndarray]:
    """Ranks of every query: the first stage's candidates by match logits, the others last."""
    loaded = load_checkpoint(albef)
    model: Any = loaded.model
    split = scenes(root)
    tokens = tokenize_cached(
        loaded.tokenizer, split.texts, model.view.text_eval, root.parent / "cache"
    )
    with torch.no_grad():
        pictures = [model.encode_images(batch) for batch in image_batches(split, model.view, 1)]
        texts = joined(caption_batches(split, model.view, tokens, split.n_captions), model)
        order = texts[1].argsort()
        pairs = torch.stack([torch.zeros(split.n_captions, dtype=torch.long), order], dim=1)
        logits = torch.stack([model.rerank(one, texts[0], pairs, "both") for one in pictures])
    matches = (torch.arange(split.n_images)[:, None] == torch.tensor(split.text_to_image)).numpy()
    similar = first["images"] @ first["texts"].t()
    return {
        "i2t": by_hand(similar.numpy(), logits.numpy(), matches),
        "t2i": by_hand(similar.t().numpy(), logits.t().numpy(), matches.T),
    }


def joined(batches: Any, model: Any) -> tuple[Encoded, torch.Tensor]:
    """The captions of the only batch, and the index of each."""
    (batch,) = list[Batch](batches)
    assert batch.caption_id is not None
    return model.encode_texts(batch), batch.caption_id


def by_hand(similar: np.ndarray, logits: np.ndarray, matches: np.ndarray) -> np.ndarray:
    ranks = []
    for row, scores, match in zip(similar, logits, matches, strict=True):
        final = np.full(len(row), -np.inf)
        best = np.argsort(-row)[:DEPTH]
        final[best] = scores[best]
        wrong = final[~match]
        ranks.append(min(1 + (wrong >= own).sum() for own in final[match]))
    return np.array(ranks)


def scenes(root: Path) -> Split:
    (folder,) = root.glob("scenes*")
    return open_split(DataConfig(name="scenes", root=str(folder)), "test", "pixels")


def test_a_tower_and_a_region_model_find_the_candidates(
    runs: dict[str, Path], given: list[str], tmp_path: Path
) -> None:
    save_tower("clip", tmp_path)
    sizes = [f"data.prepare.{name}={size}" for name, size in (("train", 60), ("val", 20))]
    tower = ["model=clip", f"model.tower={tmp_path / 'clip'}", "data=scenes", *sizes]
    second = f"rerank.checkpoint={runs['albef']}"
    for first in ([*tower, "data.prepare.test=20"], [f"checkpoint={runs['hrem']}"]):
        alone = evaluate(compose("eval", [*first, *given]))
        found = evaluate(compose("eval", [*first, *given, second]))
        assert found["test/first_stage/rsum"] == alone["test/rsum"] and found["test/rsum"] >= 0
        assert found["test/rerank_k"] == DEPTH
    deep = evaluate(compose("eval", [*first, *given, second, "rerank.k=100"]))
    own = evaluate(compose("eval", [second.partition(".")[2], *given, "rerank.k=100"]))
    assert deep["test/rsum"] == own["test/rsum"]  # every candidate: the first stage is gone


@pytest.mark.parametrize(
    ("first", "more", "told"),
    [
        ("albef", ["rerank.checkpoint={alip}"], "rerank.checkpoint=.*ALIP.*no second stage.*albef"),
        ("albef", ["rerank.checkpoint={none}"], "none.*does not exist"),
        ("alip", ["rerank.checkpoint={albef}", "rerank.k=5"], "rerank.k: 5; expected at least 10"),
        ("alip", ["rerank.checkpoint={albef}", "rerank.enabled=false"], "excludes rerank.enabled"),
        ("alip", ["rerank.checkpoint={albef}", "task=zeroshot"], "excludes task=zeroshot"),
        ("alip", ["rerank.checkpoint=[{albef},{alip}]"], "expected one checkpoint"),
        ("hrem", ["rerank.checkpoint={albef}", "data.layout=precomp"], "ALBEF reads pixels, but"),
    ],
)
def test_second_stages_that_cannot_be(
    first: str, more: list[str], told: str, runs: dict[str, Path], given: list[str]
) -> None:
    named = [option.format(**runs, none="none") for option in more]
    with pytest.raises(UserError, match=told):
        evaluate(compose("eval", [f"checkpoint={runs[first]}", *given, *named]))


def test_other_options_that_exclude_a_second_stage(runs: dict[str, Path]) -> None:
    second = f"rerank.checkpoint={runs['albef']}"
    for first in (["scores=sims.npz"], [f"checkpoint=[{runs['alip']},{runs['albef']}]"]):
        more = [] if "scores" in first[0] else ["ensemble=true"]
        with pytest.raises(ConfigError, match=r"rerank\.checkpoint=.*excludes .*leave one"):
            evaluate(compose("eval", [*first, *more, second]))


def test_pictures_and_regions_with_other_captions(
    runs: dict[str, Path], world: Path, tmp_path: Path
) -> None:
    (source,) = (world / "data").glob("scenes*")
    folder = shutil.copytree(source, tmp_path / "data" / source.name)
    (captions,) = folder.rglob("test_caps.txt")
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join([*lines[:-1], "a boat"]) + "\n")
    first = [f"checkpoint={runs['hrem']}", f"data.root={tmp_path / 'data'}", "device=cpu"]
    refused = compose("eval", [*first, f"rerank.checkpoint={runs['albef']}"])
    with pytest.raises(CheckpointError, match=r"other captions .* in one order.*reads regions"):
        evaluate(refused)
    captions.write_text("\n".join(lines) + "\n")
    ids = captions.with_name("test_ids.txt")
    ids.write_text("\n".join(str(7 * (number // 5)) for number in range(len(lines))) + "\n")
    with pytest.raises(CheckpointError, match=r"other images \(80 in the place of 0\)"):
        evaluate(refused)
    ids.unlink()
    captions.write_text("\n".join(line.upper() + " ." for line in lines) + "\n")
    found = evaluate(compose("eval", [*first, f"rerank.checkpoint={runs['albef']}"]))
    assert found["rerank_model"] == "albef"
