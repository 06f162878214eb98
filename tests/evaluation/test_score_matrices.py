"""Score matrices: reported results, refused inputs, mAP@R and hubness corrections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import itr
from itr.errors import ConfigError, DataError, UserError
from itr.evaluation.ground_truths import QueryPositives, index_positives
from itr.evaluation.hubness import CorrectedTable, HubnessConfig
from itr.evaluation.map_at_r import map_at_r_metrics, positive_ranks
from itr.evaluation.protocols import (
    PROTOCOLS,
    Protocol,
    find_protocols,
)
from itr.evaluation.ranks import TIE_BREAKS
from itr.evaluation.retrieval_set import RetrievalSet, applicable_protocols
from itr.evaluation.score_matrices import evaluate_file
from itr.evaluation.score_tables import EmbeddingTable, MatrixTable, MeanTable

OWNER = np.repeat(np.arange(4), 3)


def matrix(images: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, 3 * images)).astype(np.float32)


def test_results_report_their_protocol() -> None:
    results = itr.evaluate(matrix(), OWNER)
    assert results["protocol"] == "full" and results["tie_break"] == "pessimistic"
    assert (results["n_images"], results["n_captions"], results["captions"]) == (4, 12, "all")
    assert results["rmean"] == pytest.approx(results["rsum"] / 6)


def test_only_the_first_captions_of_an_image_are_ranked() -> None:
    draw = np.random.default_rng(3)
    owner = draw.permutation(np.repeat(np.arange(6), draw.integers(2, 6, 6)))
    scores = draw.normal(size=(6, len(owner))).astype(np.float32)
    gallery = RetrievalSet(owner, 6)
    part = next(gallery.subsets(Protocol("two", captions=2)))
    expected = [c for c in range(len(owner)) if (owner[:c] == owner[c]).sum() < 2]
    assert (
        part.captions.tolist() == expected
        and part.text_to_image.tolist() == owner[expected].tolist()
    )
    folds = list(gallery.subsets(Protocol("folds", captions=2, fold=3)))
    assert [c for fold in folds for c in fold.captions] == sorted(
        expected, key=lambda c: (owner[c] // 3, c)
    )
    assert MatrixTable(scores).subset(*part[:2]).scores("i2t", slice(None)).shape == (6, 12)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scores": np.zeros((4, 12), np.int64)}, "scores: int64 .*floats"),
        ({"scores": np.zeros(12)}, r"scores: .*\(12,\).*floats"),
        ({"scores": matrix() * np.nan}, "4 of 4 queries .*NaN"),
        ({"scores": matrix().T}, r"\(12, 4\).* 12 .*transposed"),
        ({"text_to_image": OWNER + 1}, "text_to_image .*1 to 4.* 0 to 3"),
        ({"text_to_image": OWNER / 1.0}, "text_to_image: float64 .*integers"),
        ({"text_to_image": OWNER - 2}, "text_to_image .*-2 to 1.* 0 to 3, or -1"),
        ({"text_to_image": OWNER * 0 - 1}, "none of the 12 captions"),
        ({"scores": np.where(matrix() == matrix()[2, 3], np.inf, matrix())}, r"scores\[2, 3\]"),
        ({"image_ids": np.array([1, 2, 2, 4])}, "image_ids: 1 duplicate .* 2"),
        ({"caption_ids": np.arange(3)}, "caption_ids: 3 .* 12"),
    ],
)
def test_invalid_arrays_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    given = {"scores": matrix(), "text_to_image": OWNER, **change}
    with pytest.raises(DataError, match=told):
        itr.evaluate(**given)
    np.savez(tmp_path / "sims.npz", **given)
    with pytest.raises(DataError, match=f"sims.npz: .*{told}"):
        evaluate_file(tmp_path / "sims.npz")


def test_files_that_are_not_score_matrices(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", sims=matrix())
    for name, told in (
        ("none.npz", "none.npz: no such file; .*text_to_image .*scores"),
        ("text.npz", "text.npz: .*np.savez"),
        ("other.npz", "other.npz: .*scores and text_to_image .*sims.*score_matrix_t2i"),
    ):
        with pytest.raises(DataError, match=told):
            evaluate_file(tmp_path / name)


@pytest.mark.parametrize("name", ["cxc", "eccv"])
def test_ids_unknown_to_cxc_and_eccv(name: str) -> None:
    with pytest.raises(ConfigError, match=f"protocol={name}: .*ids"):
        itr.evaluate(matrix(), OWNER, [name])
    ids = {"image_ids": np.arange(4) + 10**7, "caption_ids": np.arange(12)}
    with pytest.raises(ConfigError, match="4 of 4 image ids"):
        itr.evaluate(matrix(), OWNER, [name], **ids)
    gallery = RetrievalSet(OWNER, 4, ids["image_ids"], ids["caption_ids"])
    fitting, skipped = applicable_protocols(find_protocols(["full", name]), gallery)
    assert [p.name for p in fitting] == ["full"] and list(skipped) == [name]


def test_captions_unknown_to_the_ground_truth_are_excluded() -> None:
    """5,000 x 25,010: the ten captions beyond five per image are used by ``coco_5k`` only."""
    from eccv_caption import Metrics

    found = Metrics()
    images = np.array(list(found.coco_gts["i2t"]))
    captions = np.array([c for image in images for c in found.coco_gts["i2t"][int(image)]])
    owner = np.repeat(np.arange(5000), 5)
    captions, owner = np.r_[captions, np.arange(10) + 10**7], np.r_[owner, np.arange(10)]
    gallery = RetrievalSet(owner, 5000, images, captions)
    protocols = find_protocols(["coco_5k", "coco_5k_first5", "cxc", "eccv"])
    assert applicable_protocols(protocols, gallery) == (protocols, {})
    sizes = [len(next(gallery.subsets(p)).text_to_image) for p in protocols]
    assert sizes == [25010, 25000, 25000, 25000]
    short = RetrievalSet(owner[:20000], 5000, images, captions[:20000])
    assert "5000 of its 25000 captions" in str(short.incompatibility(protocols[2]))


def naive_precision(scores: np.ndarray, positives: list[set[int]], ties: str) -> tuple[float, ...]:
    """mAP@R, R-Precision and R@1 from lists sorted with ties for or against the positives."""
    found = []
    for row, own in zip(scores, positives, strict=True):
        favour = -1 if ties == "optimistic" else 1
        order = sorted(range(len(row)), key=lambda c: (-row[c], favour * (c in own)))
        hits = [c in own for c in order[: len(own)]]
        precision = [sum(hits[: r + 1]) / (r + 1) * hits[r] for r in range(len(own))]
        found.append((np.mean(precision), np.mean(hits), hits[0]))
    return tuple(100 * np.mean(found, axis=0))


@pytest.mark.parametrize("ties", [rule for rule in TIE_BREAKS if rule != "mean"])
def test_map_at_r_equals_sorted_lists_with_ties(ties: str) -> None:
    draw = np.random.default_rng(5)
    scores = draw.integers(0, 5, (30, 25)).astype(np.float32)
    positives = [set(draw.choice(25, draw.integers(1, 9), replace=False)) for _ in range(30)]
    rows = np.array([row for row, own in enumerate(positives) for _ in own])
    columns = np.array([c for own in positives for c in sorted(own)])
    table = torch.from_numpy(scores)
    queries = QueryPositives(np.arange(30), rows, columns, np.bincount(rows))
    found = map_at_r_metrics(*positive_ranks(lambda r: table[r], queries, 7, ties), queries)
    assert tuple(found.values()) == pytest.approx(naive_precision(scores, positives, ties))


def test_hubness_corrections_equal_the_formulas_of_their_papers() -> None:
    draw = torch.Generator().manual_seed(0)
    images, texts, bank_images, bank_texts = (
        F.normalize(torch.randn(count, 6, generator=draw), dim=1) for count in (8, 24, 30, 50)
    )
    base, config = EmbeddingTable(images, texts), HubnessConfig(beta=20.0, k=3)
    bank = (EmbeddingTable(bank_images, texts), EmbeddingTable(images, bank_texts))
    every = slice(None)
    for way, queries, others, own in (
        ("i2t", images, bank_images, texts),
        ("t2i", texts, bank_texts, images),
    ):
        scores, of_bank = queries @ own.t(), others @ own.t()
        soft = (20 * scores).exp() / (20 * of_bank).exp().sum(dim=0)
        found = CorrectedTable(base, "inverted_softmax", config, bank).scores(way, every)
        assert torch.equal(found.argsort(dim=1), soft.argsort(dim=1))
        mean_query = scores.topk(3, dim=1).values.mean(dim=1, keepdim=True)
        csls = 2 * scores - mean_query - of_bank.topk(3, dim=0).values.mean(dim=0)
        found = CorrectedTable(base, "csls", config, bank).scores(way, every)
        assert torch.equal(found.argsort(dim=1), csls.argsort(dim=1))
        hubs = set(of_bank.argmax(dim=1).tolist())
        found = CorrectedTable(base, "qb_norm", config, bank).scores(way, every)
        changed = 0
        for row, soft_row, found_row in zip(scores, soft, found, strict=True):
            hub = int(row.argmax()) in hubs
            changed += hub
            expected = (soft_row if hub else row).argsort()
            assert torch.equal(found_row.argsort(), expected)
        assert 0 < changed
    with pytest.raises(ConfigError, match="hubness.rows: qb_norm .*hubness.bank_split=train"):
        itr.evaluate(matrix(), OWNER, hubness=HubnessConfig(rows=["qb_norm"]))
    with pytest.raises(UserError, match="hubness.rows=csl:.* csls"):
        itr.evaluate(matrix(), OWNER, hubness=HubnessConfig(rows=["csl"]))
    rows = itr.evaluate(matrix(), OWNER, hubness=HubnessConfig(rows=["csls"]))
    assert rows["hubness_bank"] == "the evaluated queries" and "hubness_csls/rsum" in rows


def test_the_mean_of_tables_is_the_mean_of_matrices() -> None:
    one, two = matrix(seed=1), matrix(seed=2)
    mean = MeanTable([MatrixTable(one), MatrixTable(two)])
    both = ((one + two) / 2)[1:3, 3:9]
    part = mean.subset(slice(1, 3), np.arange(3, 9))
    assert np.array_equal(part.scores("i2t", slice(None)).numpy(), both)
    assert np.array_equal(part.scores("t2i", slice(0, 4)).numpy(), both.T[:4])


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize(
    ("owner", "told"),
    [
        (
            np.repeat(np.arange(5000), 5)[:-1],
            r"\(24999,\).* 25000 captions",
        ),
        (np.r_[np.repeat(np.arange(5000), 5), 7], r"\(25001,\).* 25000 captions"),
        (np.repeat(np.arange(5000), 5) + 1, "1 to 5000.* 0 to 4999"),
        (np.repeat(np.arange(5000), 5) - 2, "-2 to 4997.* 0 to 4999"),
    ],
)
def test_text_to_image_is_checked_under_every_protocol(
    name: str, owner: np.ndarray, told: str
) -> None:
    scores = np.broadcast_to(np.float32(0), (5000, 25000))  # a single number that is never read
    with pytest.raises(DataError, match=told):
        itr.evaluate(scores, owner, [name], logs=[])


def test_a_positive_that_is_not_a_candidate_counts_towards_r() -> None:
    table = torch.tensor([[5.0, 4.0, 3.0], [1.0, 2.0, 3.0]])
    positives = {7: [10, 12, 99, 99], 8: [98]}  # 98 and 99 are not candidates
    queries = index_positives(positives, np.array([7, 8]), np.array([10, 11, 12]))
    assert queries.queries.tolist() == [0] and queries.n_positives.tolist() == [3]
    found = map_at_r_metrics(*positive_ranks(lambda r: table[r], queries, 7), queries)
    expected = {"map_at_r": 100 * (1 + 2 / 3) / 3, "rprecision": 100 * 2 / 3, "r1": 100.0}
    assert found == pytest.approx(expected)


def test_map_at_r_needs_as_many_ordered_candidates_as_positives() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, -torch.inf, -torch.inf, -torch.inf]]).repeat(2, 1)
    rows, columns = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 3, 4, 1, 4])
    queries = QueryPositives(np.arange(2), rows, columns, np.bincount(rows))
    found = positive_ranks(lambda rows: scores[rows], queries, 7)
    assert map_at_r_metrics(*found, queries, depth=3) == {"r1": 50.0}  # one query has four
    whole = map_at_r_metrics(*found, queries, depth=4)
    assert set(whole) == {"map_at_r", "rprecision", "r1"}
    assert whole["rprecision"] == 100 * (2 / 4 + 1 / 2) / 2


def test_a_score_file_reports_what_is_unknown(tmp_path: Path) -> None:
    np.savez(tmp_path / "sims.npz", scores=matrix(), text_to_image=OWNER)
    found = evaluate_file(tmp_path / "sims.npz")
    assert found["select_on"] == found["rerank_k"] == "unknown"
    np.savez(tmp_path / "other.npz", scores=matrix(), text_to_image=OWNER[::-1])
    other = evaluate_file(tmp_path / "other.npz")
    assert len(found["data_hash"]) == 16 and found["data_hash"] != other["data_hash"]


def test_hubness_k_beyond_the_bank_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    config = HubnessConfig(rows=["csls"], k=10)
    with caplog.at_level("WARNING", logger="itr"):
        rows = itr.evaluate(matrix(), OWNER, hubness=config)
    (message,) = caplog.messages  # 4 images as queries; the 12 captions suffice
    assert "hubness.k=10" in message and "k=4" in message and "i2t" in message
    config.k = 4
    reduced = itr.evaluate(matrix(), OWNER, hubness=config)
    assert rows["hubness_csls/i2t_r1"] == reduced["hubness_csls/i2t_r1"]
