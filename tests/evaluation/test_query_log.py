"""Query logs against a naive computation on the whole score matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from itr.errors import DataError
from itr.evaluation.protocol_metrics import evaluate_embeddings
from itr.evaluation.protocols import PROTOCOLS, Protocol
from itr.evaluation.query_log import build_query_log, read_queries
from itr.evaluation.ranks import rank_table
from itr.evaluation.retrieval_set import RetrievalSet
from itr.evaluation.score_statistics import (
    CANDIDATES_SAVED,
    CURVE_RANKS,
    ScoreStatistics,
    StatisticsCollector,
)
from itr.evaluation.score_tables import EmbeddingTable, MatrixTable, ScoreTable
from itr.evaluation.shortlists import Shortlist, ShortlistTable


def world(images: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    random = torch.Generator().manual_seed(seed)
    owner = np.random.default_rng(seed).permutation(np.repeat(np.arange(images), 3))
    vectors = torch.randn(images, 8, generator=random)
    texts = vectors[owner] + 0.8 * torch.randn(len(owner), 8, generator=random)
    return vectors / vectors.norm(dim=1, keepdim=True), texts, owner


def score_statistics(table: ScoreTable, owner: np.ndarray) -> ScoreStatistics:
    return StatisticsCollector(table, owner).finish()


def test_candidates_matches_histogram_and_curve(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("itr.evaluation.score_tables.TILE_CPU", 7 * 60)  # several tiles
    images, texts, owner = world()
    table = EmbeddingTable(images, texts)
    found, scores = score_statistics(table, owner), images @ texts.t()
    for way, matrix, match in (
        ("i2t", scores, owner[None] == np.arange(60)[:, None]),
        ("t2i", scores.t(), owner[:, None] == np.arange(60)[None]),
    ):
        answers, ordered = found.top_candidates[way], matrix.sort(dim=1, descending=True)
        np.testing.assert_array_equal(answers.candidates, ordered.indices[:, :CANDIDATES_SAVED])
        np.testing.assert_allclose(answers.scores, ordered.values[:, :CANDIDATES_SAVED], rtol=1e-5)
        best = np.where(match, matrix.numpy(), -np.inf).max(axis=1)
        np.testing.assert_allclose(answers.match_score, best, rtol=1e-5)
        np.testing.assert_array_equal(
            answers.match_index, np.where(match, matrix.numpy(), -np.inf).argmax(axis=1)
        )
        curve = ordered.values[:, :CURVE_RANKS].mean(dim=0)
        np.testing.assert_allclose(answers.mean_score_by_rank, curve, rtol=1e-4, atol=1e-5)
    hits = (owner[None] == np.arange(60)[:, None]).ravel()
    flat = scores.numpy().ravel()
    assert found.match_counts.sum() == 180 and found.nonmatch_counts.sum() == 60 * 180 - 180
    for counts, values in ((found.match_counts, flat[hits]), (found.nonmatch_counts, flat[~hits])):
        theirs = np.histogram(values, found.bin_edges)[0]
        assert np.abs(np.cumsum(counts) - np.cumsum(theirs)).max() <= 2  # edges are rounded


@pytest.mark.parametrize("kind", [EmbeddingTable, MatrixTable])
def test_what_is_ranked_is_not_computed_again(kind: type, monkeypatch: pytest.MonkeyPatch):
    """A log of ranked scores costs no product: each direction is computed once."""
    monkeypatch.setattr("itr.evaluation.score_tables.TILE_CPU", 7 * 60)
    images, texts, owner = world()
    table = kind(images, texts) if kind is EmbeddingTable else kind(images @ texts.t())
    computed: dict[str, int] = {"i2t": 0, "t2i": 0}
    scores = table.scores

    def counted(direction: str, rows: slice) -> torch.Tensor:
        tile = scores(direction, rows)
        computed[direction] += len(tile)
        return tile

    monkeypatch.setattr(table, "scores", counted)
    collector = StatisticsCollector(table, owner)
    ranked = rank_table(collector.watch(), owner)
    watched = collector.finish()
    assert computed == {"i2t": 60, "t2i": 180}
    alone = score_statistics(table, owner)
    for way, top in alone.top_candidates.items():
        for name, values in top._asdict().items():
            np.testing.assert_array_equal(getattr(watched.top_candidates[way], name), values)
    for name in ("bin_edges", "match_counts", "nonmatch_counts"):
        np.testing.assert_array_equal(getattr(watched, name), getattr(alone, name))
    np.testing.assert_array_equal(ranked.i2t, rank_table(table, owner).i2t)


def test_a_shortlist_has_no_score_for_a_match_that_is_not_in_it():
    candidates, owner = torch.tensor([[0, 2], [3, 1]]), np.array([0, 0, 1, 1])
    scores = torch.tensor([[0.5, 2.0], [1.0, 3.0]])
    i2t = Shortlist(candidates, scores)
    t2i = Shortlist(torch.tensor([[1], [0], [1], [0]]), torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    found = score_statistics(ShortlistTable(i2t, t2i), owner)
    np.testing.assert_array_equal(found.top_candidates["i2t"].candidates, [[2, 0], [1, 3]])
    np.testing.assert_array_equal(found.top_candidates["i2t"].match_score, [0.5, 1.0])
    np.testing.assert_array_equal(
        found.top_candidates["t2i"].match_score, [np.nan, 2.0, 3.0, np.nan]
    )
    np.testing.assert_array_equal(found.top_candidates["t2i"].match_index, [0, 0, 1, 1])
    assert found.match_counts.sum() == 2 and found.nonmatch_counts.sum() == 2


def test_ranks_by_protocol_survive_saving_and_reading(tmp_path: Path):
    images, texts, owner = world()
    kept: dict = {}
    folds = Protocol("folds", fold=20)
    evaluate_embeddings(images, texts, owner, [PROTOCOLS["full"], folds], ranks_by_name=kept)
    gallery = RetrievalSet(owner, 60, image_ids=np.arange(60) + 1000)
    protocols = [PROTOCOLS["full"], folds]
    log = build_query_log(EmbeddingTable(images, texts), gallery, protocols, kept)
    assert log.image_ids[0] == 1000 and log.caption_ids[-1] == 179
    log.save(tmp_path, "test", {"checkpoint": "x"})
    back = read_queries(tmp_path)
    assert back.metadata == {"checkpoint": "x", "split": "test"} and back.folds == {"folds": 20}
    whole = rank_table(EmbeddingTable(images, texts), owner)
    np.testing.assert_array_equal(back.ranks["full"].i2t, whole.i2t)
    np.testing.assert_array_equal(back.ranks["full"].t2i, whole.t2i)
    mine = np.flatnonzero((owner >= 20) & (owner < 40))
    part = rank_table(EmbeddingTable(images[20:40], texts[mine]), owner[mine] - 20)
    np.testing.assert_array_equal(back.ranks["folds"].i2t[20:40], part.i2t)
    np.testing.assert_array_equal(back.ranks["folds"].t2i[mine], part.t2i)
    np.testing.assert_array_equal(
        back.top_candidates["t2i"].candidates, log.top_candidates["t2i"].candidates
    )
    assert not list(tmp_path.glob(".*"))


def test_a_missing_or_damaged_file_names_the_command_to_run(tmp_path: Path):
    with pytest.raises(DataError, match="queries-test.npz: .*python eval.py checkpoint=.* out="):
        read_queries(tmp_path)
    (tmp_path / "queries-test.npz").write_bytes(b"PK broken")
    with pytest.raises(DataError, match="queries-test.npz: .*python eval.py"):
        read_queries(tmp_path)
