"""Re-ranking against one query at a time, and ranks of shortlists against whole matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rerank_speed import build, encoded, loop
from itr.errors import ConfigError, DataError
from itr.evaluation.ranks import rank_scores, rank_table
from itr.evaluation.rerank import (
    RerankConfig,
    by_length,
    check_rerank,
    pair_blocks,
    rerank,
)
from itr.evaluation.shortlists import Shortlist, ShortlistTable
from itr.instantiate import check
from itr.models.base import Encoded
from itr.view import View


class Matcher:
    """A second stage in one line: products of tokens, plus a constant per direction."""

    def __init__(self, symmetric: bool):
        self.symmetric_rerank, self.scored, self.images = symmetric, 0, 0
        self.view, self.rerank_block = View("pixels", "none", padding_is_arithmetic=True), 1
        self.extra: Mapping[str, float] = {"both": 0.0, "i2t": 0.0, "t2i": 5.0}

    def rerank(
        self, images: Encoded, texts: Encoded, pairs: Tensor, direction: str, block: int = 1
    ) -> Tensor:
        assert images.tokens is not None and texts.tokens is not None
        assert (pairs[1:, 0] >= pairs[:-1, 0]).all()  # image by image
        self.scored, self.images = self.scored + len(pairs), self.images + len(images.pooled)
        i, t = pairs.unbind(1)
        return (images.tokens[i] * texts.tokens[t]).sum(dim=(1, 2)) + self.extra[direction]


def world(images: int, texts: int) -> tuple[Encoded, Encoded]:
    generator = torch.Generator().manual_seed(0)

    def side(count: int) -> Encoded:
        return Encoded(
            torch.randn(count, 4, generator=generator),
            torch.randn(count, 3, 5, generator=generator),
        )

    return side(images), side(texts)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("k", "batch_size"), [(10, 7), (12, 1000), (500, 64)])
def test_equals_one_query_at_a_time(symmetric: bool, k: int, batch_size: int) -> None:
    images, texts = world(15, 40)
    model: Any = Matcher(symmetric)
    i2t, t2i = rerank(model, images, texts, RerankConfig(k=k, batch_size=batch_size))
    assert images.tokens is not None and texts.tokens is not None
    extra = 0.0 if symmetric else 5.0
    for query in range(15):
        best = (texts.pooled @ images.pooled[query]).argsort(descending=True)[: min(k, 40)]
        assert i2t.candidates[query].tolist() == best.tolist()
        for rank, text in enumerate(best.tolist()):
            expected = (images.tokens[query] * texts.tokens[text]).sum()
            torch.testing.assert_close(i2t.scores[query, rank], expected)
    for query in range(40):
        best = (images.pooled @ texts.pooled[query]).argsort(descending=True)[: min(k, 15)]
        assert t2i.candidates[query].tolist() == best.tolist()
        for rank, image in enumerate(best.tolist()):
            expected = (images.tokens[image] * texts.tokens[query]).sum() + extra
            torch.testing.assert_close(t2i.scores[query, rank], expected)


def test_each_pair_is_scored_once_and_each_image_is_prepared_once() -> None:
    images, texts = world(15, 40)
    model: Any = Matcher(symmetric=True)
    lists = rerank(model, images, texts, RerankConfig(k=12, batch_size=1000))
    pairs = {(i, int(t)) for i, row in enumerate(lists[0].candidates) for t in row}
    pairs |= {(int(i), t) for t, row in enumerate(lists[1].candidates) for i in row}
    assert model.scored == len(pairs) and model.images == 15


def test_blocks_contain_pairs_of_one_image_and_every_pair_once() -> None:
    image_of = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3])
    seen = []
    for block in pair_blocks(image_of, size=4, batch_size=9):
        assert len(block.pairs) in (4, 8)
        owners = image_of[block.pairs].unflatten(0, (-1, 4))
        assert (owners == owners[:, :1]).all()
        seen += block.pairs[block.is_new].tolist()
    assert seen == list(range(9))


def test_captions_of_similar_length_are_grouped_and_cut_to_the_longest() -> None:
    lengths = torch.tensor([3, 9, 4, 3, 8, 5, 2, 9])
    mask = torch.arange(12) < lengths[:, None]
    texts = Encoded(torch.zeros(8, 1), torch.zeros(8, 12, 2), mask)
    text_of, seen = torch.tensor([1, 2, 3, 1, 7, 6, 0, 5, 4]), []
    for chosen, cut in by_length(texts, text_of, trimmed=True):
        longest = int(lengths[text_of[chosen]].max())
        assert cut.tokens.shape[1] == cut.mask.shape[1] == longest
        seen += chosen.tolist()
    assert sorted(seen) == list(range(9))
    ((every, same),) = by_length(texts, text_of, trimmed=False)
    assert len(every) == 9 and same is texts


def test_scores_that_are_not_finite_are_refused() -> None:
    images, texts = world(12, 12)
    assert images.tokens is not None
    images.tokens[3] = torch.nan
    model: Any = Matcher(symmetric=True)
    with pytest.raises(DataError, match=r"21 of 240 .*precision=fp32"):
        rerank(model, images, texts, RerankConfig(k=10))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_equal_those_of_the_full_matrix(data: st.DataObject) -> None:
    images = data.draw(st.integers(2, 6))
    counts = data.draw(st.lists(st.integers(1, 4), min_size=images, max_size=images))
    owner = np.repeat(np.arange(images), counts)
    seed = data.draw(st.integers(0, 10**6))
    ties = data.draw(st.sampled_from(["pessimistic", "optimistic", "mean"]))
    generator = torch.Generator().manual_seed(seed)

    def shortlist(queries: int, candidates: int) -> tuple[Shortlist, Tensor]:
        k = 1 + seed % candidates
        chosen = torch.rand(queries, candidates, generator=generator).topk(k).indices
        scores = torch.randint(0, 4, (queries, k), generator=generator).float()  # planted ties
        whole = torch.full((queries, candidates), -1e9).scatter(1, chosen, scores)
        return Shortlist(chosen, scores), whole

    (i2t, forward), (t2i, backward) = shortlist(images, len(owner)), shortlist(len(owner), images)
    found = rank_table(ShortlistTable(i2t, t2i), owner, ties)
    assert found.i2t.tolist() == rank_scores(forward, owner, ties).i2t.tolist()
    assert found.t2i.tolist() == rank_scores(backward.t(), owner, ties).t2i.tolist()


@pytest.mark.parametrize(
    ("config", "reranks", "message"),
    [
        (RerankConfig(k=9), True, r"^rerank\.k: 9; .* 10"),
        (RerankConfig(enabled=True), False, r"^rerank\.enabled=true: HREM .*rerank\.enabled=null"),
    ],
)
def test_invalid_options_are_refused(config: RerankConfig, reranks: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rerank(config, reranks, "HREM")


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^rerank\.batch_size=0: expected at least 1"):
        check({"batch_size": 0}, RerankConfig, "rerank")


def test_shares_work_between_queries() -> None:
    """Floating-point operations against one query at a time; times: benchmarks/rerank_speed.py."""
    torch.manual_seed(0)
    model, (images, texts) = build(), encoded(60, 300, 65)
    with torch.no_grad(), FlopCounterMode(display=False) as ours:
        lists = rerank(model, images, texts, RerankConfig(k=32, batch_size=512))
    operations = 0.0
    for way, (candidates, scores) in zip(("i2t", "t2i"), lists, strict=True):
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            alone = torch.stack(loop(model, images, texts, candidates[:10], way))
        operations += counted.get_total_flops() * len(candidates) / 10
        assert (alone - scores[:10]).abs().max() < 1e-5
    assert operations >= 4 * ours.get_total_flops()  # here 4.6
