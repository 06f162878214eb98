"""Ranks by counting against a naive double loop: ties, rounding, operations and memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from itr.errors import ConfigError, DataError
from itr.evaluation.ranks import TIE_BREAKS, rank_embeddings, rank_scores, rank_table
from itr.evaluation.score_tables import EmbeddingTable, Rows


def naive_ranks(scores: np.ndarray, owner: np.ndarray, ties: str) -> tuple[list, list]:
    """Both directions, one comparison at a time. ``scores`` [N, C], ``owner`` [C]."""

    def rank(row: np.ndarray, own: set[int]) -> float:
        best = max(row[column] for column in own)
        beaten = equal = 0
        for column, score in enumerate(row):
            if column not in own:
                beaten += score > best
                equal += score == best
        return 1 + beaten + {"optimistic": 0, "pessimistic": equal, "mean": equal / 2}[ties]

    i2t = [rank(row, set(np.flatnonzero(owner == i).tolist())) for i, row in enumerate(scores)]
    t2i = [rank(scores[:, c], {int(owner[c])}) for c in range(len(owner))]
    return i2t, t2i


@st.composite
def owners(draw: st.DrawFn) -> np.ndarray:
    """The image of each caption: 1 to 4 captions per image, in any order."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=7))
    return np.array(draw(st.permutations(np.repeat(np.arange(len(counts)), counts).tolist())))


@settings(max_examples=150, deadline=None)
@given(st.data(), owners(), st.sampled_from(TIE_BREAKS), st.sampled_from([np.float32, np.float64]))
def test_scores_rank_as_a_double_loop_counts(data, owner, ties, kind):
    size = (int(owner.max()) + 1) * len(owner)
    # Few values, so that most rows contain ties, with matches and among non-matches.
    values = data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    scores = np.array(values, dtype=kind).reshape(-1, len(owner)) / 7
    i2t, t2i = naive_ranks(scores, owner, ties)
    for given_as in (scores, torch.from_numpy(scores), np.asfortranarray(scores)):
        ranks = rank_scores(given_as, owner, ties)
        assert ranks.i2t.tolist() == i2t
        assert ranks.t2i.tolist() == t2i


@settings(max_examples=150, deadline=None)
@given(st.data(), owners(), st.sampled_from(TIE_BREAKS), st.integers(1, 60))
def test_embeddings_rank_as_a_double_loop_counts(data, owner, ties, tile):
    def embeddings(count: int) -> torch.Tensor:
        values = data.draw(st.lists(st.integers(-2, 2), min_size=3 * count, max_size=3 * count))
        return torch.tensor(values, dtype=torch.float32).reshape(count, 3)

    images, texts = embeddings(int(owner.max()) + 1), embeddings(len(owner))
    scores = (images[:, None, :] * texts[None, :, :]).sum(dim=2).numpy()
    ranks = rank_embeddings(images, texts, torch.from_numpy(owner), ties, tile)
    i2t, t2i = naive_ranks(scores, owner, ties)  # small integers: exact in any order of summation
    assert ranks.i2t.tolist() == i2t
    assert ranks.t2i.tolist() == t2i


@pytest.mark.parametrize("ties", TIE_BREAKS)
@pytest.mark.parametrize("tile", [200, 1_700, 10**6])
def test_rounding_never_lets_a_match_outrank_itself(ties, tile):
    # Real numbers: the same product computed in another shape may differ in the last bit.
    images = torch.nn.functional.normalize(
        torch.randn(37, 515, generator=torch.Generator().manual_seed(0)), dim=1
    )
    owner = torch.arange(37).repeat_interleave(5)
    ranks = rank_embeddings(images, images[owner], owner, ties, tile)
    assert (ranks.i2t == 1).all()
    assert (ranks.t2i == 1).all()


def test_equal_scores_under_the_three_rules():
    scores, owner = np.zeros((3, 6), np.float32), np.repeat(np.arange(3), 2)
    found = {ties: rank_scores(scores, owner, ties) for ties in TIE_BREAKS}
    assert found["optimistic"].i2t.tolist() == [1, 1, 1]
    assert found["pessimistic"].i2t.tolist() == [5, 5, 5]  # four non-matches have the same score
    assert found["mean"].i2t.tolist() == [3, 3, 3]
    assert found["mean"].t2i.tolist() == [2] * 6
    assert found["pessimistic"].t2i.dtype == np.int64


def test_matches_at_minus_infinity_rank_last():
    scores = np.array([[-np.inf, 0.0, 1.0], [0.5, 2.0, -np.inf]], np.float32)
    ranks = rank_scores(scores, [0, 1, 1])
    assert ranks.i2t.tolist() == [3, 1]
    assert ranks.t2i.tolist() == [2, 1, 2]


def test_memory_mapped_scores(tmp_path):
    scores = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    np.save(tmp_path / "scores.npy", scores)
    owner = [3, 0, 0, 1, 2, 2, 2, 1, 3]
    mapped = rank_scores(np.load(tmp_path / "scores.npy", mmap_mode="r"), owner)
    i2t, t2i = naive_ranks(scores, np.array(owner), "pessimistic")
    assert (mapped.i2t.tolist(), mapped.t2i.tolist()) == (i2t, t2i)


@pytest.mark.parametrize("position", [(0, 0), (2, 4)])
def test_nan_is_refused(position):
    scores = np.ones((3, 6))
    scores[position] = np.nan
    with pytest.raises(DataError, match="1 of 3 queries .*NaN"):
        rank_scores(scores, np.repeat(np.arange(3), 2))
    images = torch.ones(3, 2)
    images[position[0], 0] = torch.nan
    with pytest.raises(DataError, match=rf"1 of 3 .*index: {position[0]}\)"):
        rank_embeddings(images, torch.ones(6, 2), np.repeat(np.arange(3), 2))


def test_invalid_text_to_image_is_refused():
    scores = np.zeros((3, 4))
    with pytest.raises(DataError, match="none of the 4 captions"):
        rank_scores(scores, [-1] * 4)
    assert np.isnan(rank_scores(scores, [0, 0, 2, 2]).i2t).tolist() == [False, True, False]
    with pytest.raises(DataError, match=r"text_to_image .*0 to 3.* 0 to 2"):
        rank_scores(scores, [0, 1, 2, 3])
    with pytest.raises(DataError, match=r"text_to_image .*\(3,\).* 4 captions"):
        rank_scores(scores, [0, 1, 2])
    with pytest.raises(ConfigError, match="tie_break: .*'worst'.*pessimistic"):
        rank_scores(scores, [0, 1, 2, 2], tie_break="worst")


class Operations(TorchDispatchMode):
    """Counts tensor operations by name, and the largest result in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel() * result.element_size())
        return result


class Tiles(EmbeddingTable):
    """Records the tiles that are requested."""

    def __init__(self, images: torch.Tensor, texts: torch.Tensor):
        super().__init__(images, texts)
        self.requested: list[tuple[str, int, int]] = []

    def scores(self, direction: str, rows: Rows) -> torch.Tensor:
        tile = super().scores(direction, rows)
        self.requested.append((direction, *tile.shape))
        return tile


@pytest.mark.parametrize(("ties", "comparisons"), [("pessimistic", 1), ("mean", 2)])
def test_every_score_is_computed_once_and_compared_without_sorting(ties, comparisons):
    images, captions, tile = 60, 300, 2_000
    draw = torch.Generator().manual_seed(0)
    table = Tiles(torch.randn(images, 4, generator=draw), torch.randn(captions, 4, generator=draw))
    with Operations() as operations:
        rank_table(table, np.repeat(np.arange(images), 5), ties, tile)
    for direction, queries, candidates in (("i2t", images, captions), ("t2i", captions, images)):
        tiles = [shape for way, *shape in table.requested if way == direction]
        assert sum(rows for rows, _ in tiles) == queries
        assert all(width == candidates for _, width in tiles)
        assert max(rows for rows, _ in tiles) == tile // candidates
    calls = operations.calls
    assert calls["ge"] + calls["gt"] == comparisons * len(table.requested)
    products = calls["mm"] + calls["matmul"]  # inference mode dispatches the second
    assert products == len(table.requested)
    assert not calls.keys() & {"sort", "argsort", "topk"}


def test_memory_depends_on_the_tile_and_not_on_the_number_of_scores():
    """A matrix of 20 million scores (80 MB) is never in memory: no tensor exceeds a tile."""
    images, captions, tile = 1_000, 20_000, 2**18
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(captions, 4, generator=draw)
    with Operations() as operations:
        rank_embeddings(vectors[:images], vectors, np.arange(captions) % images, tile=tile)
    assert operations.largest <= 4 * tile
